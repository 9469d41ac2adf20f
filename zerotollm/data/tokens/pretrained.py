"""A tokenizer that came with a checkpoint: a `tokenizer.json` of the `tokenizers` library behind the interface of ours.

It is kept as one JSON object: that file as it came, and the ids of its special tokens, which stand beside it there.
In a text special tokens are never met: what looks like one is encoded as any other text. For that they are spelled
with a character that the text does not hold while it is encoded: to the library a special token is also a piece of the
vocabulary, which text may be cut into.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import write_atomically

SPACE = "\u2581"
"""What SentencePiece, and who learnt from it, writes for a space."""
FORMAT = b"2"
"""To be raised with every change to the ids of a text."""
MARKS = range(0x10FFFF, 0xDFFF, -1)
"""Characters, the last of Unicode first: these stand for nothing."""


@dataclass(frozen=True, repr=False)
class PretrainedTokenizer:
    """Two are equal if their bytes are. See `pretrained_tokenizer`."""

    model: bytes
    """JSON: pad, bos, eos, and the tokenizer"""

    @property
    def kind(self) -> str:
        """Always "pretrained"."""
        return "pretrained"

    @property
    def pad_id(self) -> int:
        """Where there is none, that of eos: what is padded has no weight."""
        return self._parts["pad"]

    @property
    def bos_id(self) -> int:
        """What stands before a text: where the tokenizer has no such token, the one that ends texts."""
        return self._parts["bos"]

    @property
    def eos_id(self) -> int:
        """What ends a text."""
        return self._parts["eos"]

    @property
    def stop_id(self) -> int:
        """What a model writes after a text."""
        return self.eos_id

    @property
    def unk_id(self) -> int | None:
        """What stands for characters that have no token; None where there is no such token."""
        model = self._parts["tokenizer"]["model"]
        return model.get("unk_id", self._tokenizer.token_to_id(model.get("unk_token") or ""))

    @cached_property
    def vocab_size(self) -> int:
        """Ids are 0 to vocab_size - 1; some may be no token."""
        return 1 + max(*self._tokenizer.get_vocab().values(), self.pad_id, self.bos_id, self.eos_id)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [N], without special tokens. Raises UsageError for half of a surrogate pair."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text, on all cores."""
        refuse_surrogates(texts)
        mark = next(mark for mark in map(chr, MARKS) if not any(mark in text for text in texts))
        encoded = self._encoder(mark).encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(one.ids, np.int32) for one in encoded]
        if not _reads_bytes(self._parts["tokenizer"]["model"]):
            return ids
        run = [self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in mark.encode()]
        return ids if None in run else [_without(ids_N, run) for ids_N in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids. Special tokens have none; bytes that are not UTF-8 become U+FFFD. A tokenizer that
        encodes a text as if a space stood before it gives that space back."""
        return b"".join([self.token_bytes(int(i)) for i in ids]).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, in UTF-8: perhaps a part of a character; nothing for a special one."""
        return self._meanings[token_id]

    def piece(self, token_id: int) -> str:
        """A token as its vocabulary writes it; empty for an id that is no token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def save(self, path: str | Path) -> None:
        """Writes it, whole or not at all. Raises RunError where the disk is full or read-only."""
        write_atomically(Path(path), self.model)

    @property
    def tokenizer_json(self) -> dict[str, Any]:
        """As the `tokenizers` library reads it."""
        return self._parts["tokenizer"]

    def __repr__(self) -> str:
        return f"PretrainedTokenizer({self._parts['tokenizer']['model']['type']}, {self.vocab_size:,} tokens)"

    @cached_property
    def _parts(self) -> dict[str, Any]:
        return json.loads(self.model)

    @cached_property
    def _tokenizer(self) -> Any:
        return _library(self._parts["tokenizer"])

    @cached_property
    def _encoder(self) -> Callable[[str], Any]:
        """Of the library, for special tokens that are spelled with a character."""
        return lru_cache(maxsize=2)(
            lambda mark: _library(_respelled(self._parts["tokenizer"], self._control, mark))
        )

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids that no text is: what is called special, and the ids of `model` where they are no single characters."""
        tokenizer = self._parts["tokenizer"]
        pieces = {token_id: piece for piece, token_id in _vocabulary(tokenizer["model"]).items()}
        added = {token["id"]: token.get("special") for token in tokenizer.get("added_tokens") or []}
        named = {self.bos_id, self.eos_id, _unknown(tokenizer["model"])}
        return frozenset(
            {token_id for token_id, special in added.items() if special}
            | {token_id for token_id in named if token_id in added or len(pieces.get(token_id, "")) > 1}
            | ({self.pad_id} & added.keys())
        )

    @cached_property
    def _meanings(self) -> list[bytes]:
        meanings = _meanings(self._parts["tokenizer"], self._tokenizer.get_vocab(), self.vocab_size)
        for token_id in self._control & {self.pad_id, self.bos_id, self.eos_id}:
            meanings[token_id] = b""
        return meanings


def pretrained_tokenizer(
    tokenizer: dict[str, Any], *, bos_id: int | None, eos_id: int, pad_id: int | None, source: str
) -> PretrainedTokenizer:
    """The tokenizer of a tokenizer.json. `source` says in messages where it came from.

    Raises UsageError where the `tokenizers` library cannot read it, or we cannot say which bytes its tokens stand for.
    """
    parts = {
        "pad": eos_id if pad_id is None else pad_id,
        "bos": eos_id if bos_id is None else bos_id,
        "eos": eos_id,
        "tokenizer": tokenizer,
    }
    made = PretrainedTokenizer(json.dumps(parts, ensure_ascii=False).encode())
    try:
        vocabulary = made._tokenizer.get_vocab()
        made.encode("")
    except Exception as error:  # noqa: BLE001  the library raises nothing more special
        raise UsageError(f"{source} is no tokenizer that can be used here: {error}") from None
    try:
        _meanings(tokenizer, vocabulary, made.vocab_size)
    except UsageError as error:
        raise UsageError(f"{source} is no tokenizer that can be used here: {error}") from None
    return made


def _library(tokenizer: Mapping[str, Any]) -> Any:
    """A `tokenizers.Tokenizer` that meets no special token in a text and gives every text all its ids."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(tokenizer))
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    return made


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    """Piece to id, of a model as tokenizer.json has it."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces and their scores
        return {piece: token_id for token_id, (piece, _) in enumerate(vocabulary)}
    return vocabulary


def _unknown(model: Mapping[str, Any]) -> int | None:
    """The id of what is in no vocabulary."""
    return model["unk_id"] if "unk_id" in model else _vocabulary(model).get(model.get("unk_token") or "")


def _reads_bytes(model: Mapping[str, Any]) -> bool:
    """Whether a text that looks like the piece of a byte, <0x41>, would be that byte. No pair is merged into one."""
    return bool(model.get("byte_fallback")) and (
        isinstance(model["vocab"], list) or bool(model.get("ignore_merges"))
    )


def _respelled(tokenizer: Mapping[str, Any], control: frozenset[int], mark: str) -> dict[str, Any]:
    """The same tokenizer.json with `control` spelled otherwise, each with `mark`, and without what merges into them."""
    model = dict(tokenizer["model"])
    names = {piece: f"{mark}{i}{mark}" for piece, i in _vocabulary(model).items() if i in control}
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if not {left, right, left + right.removeprefix(prefix)} & names.keys()
        ]
    plain = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    added = [
        token | plain | {"content": f"{mark}{token['id']}{mark}"} if token["id"] in control else token
        for token in tokenizer.get("added_tokens") or []
    ]
    normalizer = tokenizer.get("normalizer")
    if _reads_bytes(model):  # what stands in between is cut out of the ids again
        apart = {"type": "Replace", "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"}, "content": f"<{mark}"}
        normalizer = {"type": "Sequence", "normalizers": [*([normalizer] if normalizer else []), apart]}
    changed = {"model": model, "added_tokens": added, "normalizer": normalizer, "post_processor": None}
    return dict(tokenizer) | changed


def _without(ids_N: np.ndarray, run: Sequence[int]) -> np.ndarray:
    """The ids without the places where all of `run` stands."""
    if len(ids_N) < len(run):
        return ids_N
    windows = np.lib.stride_tricks.sliding_window_view(ids_N, len(run))
    starts = np.flatnonzero((windows == np.array(run)).all(axis=1))
    return np.delete(ids_N, (starts[:, None] + np.arange(len(run))).ravel())


def refuse_surrogates(texts: Iterable[str]) -> None:
    """Raises UsageError where a text cannot be written as UTF-8."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"character {error.start} (counted from 0) of a text of {len(text)} is half of a surrogate "
                "pair: the text was not read as UTF-8"
            ) from error


def _meanings(tokenizer: dict[str, Any], vocabulary: dict[str, int], size: int) -> list[bytes]:
    """The bytes of every token. Raises UsageError where the decoder is one that we do not know."""
    decoder = tokenizer.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    kinds = {step.get("type") for step in steps}
    unknown = kinds - {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip", None}
    if unknown:
        raise UsageError(f"its decoder is {min(unknown)}")
    unicode_bytes = _byte_level() if "ByteLevel" in kinds else {}
    replaced = {
        step["pattern"].get("String", ""): step["content"] for step in steps if step.get("type") == "Replace"
    } | ({SPACE: " "} if "Metaspace" in kinds else {})

    def meaning(piece: str) -> bytes:
        if unicode_bytes:
            # What is no byte of GPT-2's alphabet stands for itself.
            return b"".join(bytes([unicode_bytes[c]]) if c in unicode_bytes else c.encode() for c in piece)
        if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        for old, new in replaced.items():
            piece = piece.replace(old, new) if old else piece
        return piece.encode()

    added = {token["id"]: token for token in tokenizer.get("added_tokens") or []}
    meanings = [b""] * size
    for piece, token_id in vocabulary.items():
        if token_id in added:
            meanings[token_id] = b"" if added[token_id].get("special") else piece.encode()
        else:
            meanings[token_id] = meaning(piece)
    return meanings


def _byte_level() -> dict[str, int]:
    """The byte for which each character of GPT-2's vocabulary stands (Radford et al. 2019, section 2.2): itself where
    that can be seen, else the next of those from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}
