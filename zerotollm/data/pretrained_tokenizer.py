"""A tokenizer that came with a checkpoint: a `tokenizer.json` of the `tokenizers` library behind the interface of ours.

It is kept as one JSON object: that file as it came, and the ids of its special tokens, which stand beside it there.
In a text special tokens are never met: what looks like one is encoded as any other text.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zerotollm.errors import UsageError
from zerotollm.files import write_atomically

SPACE = "\u2581"
"""What SentencePiece, and who learnt from it, writes for a space."""


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
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

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
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(json.dumps(self._parts["tokenizer"]))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _meanings(self) -> list[bytes]:
        return _meanings(self._parts["tokenizer"], self._tokenizer.get_vocab(), self.vocab_size)


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
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_str(json.dumps(tokenizer)).get_vocab()
    except Exception as error:  # noqa: BLE001  the library raises nothing more special
        raise UsageError(f"{source} is no tokenizer that can be used here: {error}") from None
    try:
        _meanings(tokenizer, vocabulary, made.vocab_size)
    except UsageError as error:
        raise UsageError(f"{source} is no tokenizer that can be used here: {error}") from None
    return made


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
