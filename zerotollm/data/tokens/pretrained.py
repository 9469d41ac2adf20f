"""Imported tokenizers: a `tokenizer.json` of the `tokenizers` library with the interface of a trained one.

The saved file is one JSON object: the original tokenizer.json, the ids of pad, bos and eos, and where there are any,
further stop ids and the chat template. Text never encodes to a special token; a piece such as `</s>` in a text is
ordinary text. The library, however, also matches special tokens as pieces of the vocabulary. Therefore `encode` renames
them, with a character that the text does not contain.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tokenizers

from zerotollm.data.tokens.byte_tokenizer import SPACE, ByteTokenizer, check_encodable_as_utf8
from zerotollm.errors import UsageError

FORMAT = b"2"  # raise this whenever the ids of a text change
MARKS = range(0x10FFFF, 0xDFFF, -1)  # candidate characters for renaming special tokens
KNOWN_DECODERS = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip", None}

Json = Mapping[str, Any]


class ChatTemplate(NamedTuple):
    """How the author of a model writes conversations: a Jinja template, and the special tokens that it names."""

    source: str
    special_tokens: dict[str, str]  # such as {"eos_token": "<|im_end|>"}


@dataclass(frozen=True, repr=False)
class PretrainedTokenizer(ByteTokenizer):
    """An imported tokenizer. Its `model` is JSON with pad, bos, eos and tokenizer. See `pretrained_tokenizer`."""

    kind: ClassVar[str] = "pretrained"

    pad_id = cached_property[int](lambda self: self._fields["pad"])
    """the padding token; eos if there is none, as padding has weight 0"""
    bos_id = cached_property[int](lambda self: self._fields["bos"])
    """the token before a text; eos if the tokenizer has no such token"""
    eos_id = cached_property[int](lambda self: self._fields["eos"])
    stop_id = cached_property[int](lambda self: self._fields["eos"])
    """the token that ends a text in training"""
    stop_ids = cached_property[tuple[int, ...]](lambda self: tuple(self._fields.get("stop", [self.stop_id])))
    """the tokens that end generation: eos, and others that the checkpoint names, such as the end of a turn"""
    chat_template = cached_property[ChatTemplate | None](
        lambda self: ChatTemplate(*self._fields["chat"]) if "chat" in self._fields else None
    )
    tokenizer_json = cached_property[dict[str, Any]](lambda self: self._fields["tokenizer"])

    @property
    def unk_id(self) -> int | None:
        """The token for characters that have none; None if the tokenizer has no such token."""
        model = self.tokenizer_json["model"]
        return model.get("unk_id", self._library.token_to_id(model.get("unk_token") or ""))

    @cached_property
    def vocab_size(self) -> int:
        """Ids are 0 to vocab_size - 1; some may be unused."""
        return 1 + max(*self._library.get_vocab().values(), self.pad_id, self.bos_id, *self.stop_ids)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return `encode` of every text, computed on all cores."""
        check_encodable_as_utf8(texts)
        mark = unused_character(texts)
        return self._encode(self._renamed_library(mark), mark, texts)

    def encode_with_special(self, text: str, mark: str) -> np.ndarray:
        """Return the ids of a text with its special tokens, int32 [N]. A special token after `mark` stays text."""
        check_encodable_as_utf8([text])
        other = unused_character([text, mark])
        names = {self.piece(token_id): f"{other}{token_id}{other}" for token_id in self.special_ids}
        text = re.sub(
            f"(?<!{mark}){self.special_pattern.pattern}", lambda match: names[match[0]], text
        ).replace(mark, "")
        library = _load_library(_rename_special(self.tokenizer_json, self.special_ids, other))
        library.encode_special_tokens = False
        return self._encode(library, other, [text])[0]

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Match the spelling of any special token."""
        pieces = sorted((self.piece(token_id) for token_id in self.special_ids), key=len, reverse=True)
        return re.compile(f"(?:{'|'.join(map(re.escape, filter(None, pieces))) or '(?!)'})")

    def _encode(self, library: tokenizers.Tokenizer, mark: str, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of texts by a library whose special tokens are spelled with `mark`."""
        encoded = library.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in encoded]
        if not _matches_byte_pieces(self.tokenizer_json["model"]):
            return ids
        mark_ids = [self._library.token_to_id(f"<0x{byte:02X}>") for byte in mark.encode()]
        run = [token_id for token_id in mark_ids if token_id is not None]
        return [_remove_all(ids_N, run) for ids_N in ids] if len(run) == len(mark_ids) else ids

    def piece(self, token_id: int) -> str:
        """Return a token as its vocabulary spells it; empty for an unused id."""
        return self._library.id_to_token(token_id) or ""

    def __repr__(self) -> str:
        return f"PretrainedTokenizer({self.tokenizer_json['model']['type']}, {self.vocab_size:,} tokens)"

    @cached_property
    def _fields(self) -> dict[str, Any]:
        return json.loads(self.model)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        return _load_library(self.tokenizer_json)

    @cached_property
    def _renamed_library(self) -> Callable[[str], tokenizers.Tokenizer]:
        """Map a character to the tokenizer whose special tokens are spelled with it."""
        special = self.special_ids
        return lru_cache(2)(lambda mark: _load_library(_rename_special(self.tokenizer_json, special, mark)))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text encodes to: added special tokens; bos, eos and unk unless they are single characters."""
        model = self.tokenizer_json["model"]
        pieces = {token_id: piece for piece, token_id in _vocabulary(model).items()}
        added = {token["id"]: token.get("special") for token in self.tokenizer_json.get("added_tokens") or []}
        unk_id = model.get("unk_id", _vocabulary(model).get(model.get("unk_token") or ""))
        named = {self.bos_id, *self.stop_ids, unk_id}
        return frozenset(
            {token_id for token_id, special in added.items() if special}
            | {token_id for token_id in named if token_id in added or len(pieces.get(token_id, "")) > 1}
            | ({self.pad_id} & added.keys())
        )

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        token_bytes = _bytes_of_tokens(self.tokenizer_json, self._library.get_vocab(), self.vocab_size)
        for token_id in self.special_ids & {self.pad_id, self.bos_id, *self.stop_ids}:
            token_bytes[token_id] = b""
        return token_bytes


def pretrained_tokenizer(
    tokenizer: Json,
    *,
    bos_id: int | None,
    eos_id: int,
    pad_id: int | None,
    source: str,
    stop_ids: Sequence[int] = (),
    chat_template: ChatTemplate | None = None,
) -> PretrainedTokenizer:
    """Return the tokenizer of a tokenizer.json. `stop_ids` end generation, as eos does.

    Raises UsageError, naming the `source`, if it is not supported.
    """
    pad_id, bos_id = (eos_id if token_id is None else token_id for token_id in (pad_id, bos_id))
    fields: dict[str, object] = {"pad": pad_id, "bos": bos_id, "eos": eos_id, "tokenizer": tokenizer}
    if others := set(stop_ids) - {eos_id}:
        fields["stop"] = [eos_id, *sorted(others)]
    if chat_template:
        fields["chat"] = chat_template
    result = PretrainedTokenizer(json.dumps(fields, ensure_ascii=False).encode())
    try:
        result.encode("")
        result.token_bytes(0)
    except Exception as error:  # noqa: BLE001  the library raises plain Exception
        raise UsageError(f"{source} is not a supported tokenizer: {error}") from None
    return result


def unused_character(texts: Sequence[str]) -> str:
    """Return a character that none of the texts contains."""
    return next(mark for mark in map(chr, MARKS) if not any(mark in text for text in texts))


def _load_library(tokenizer: Json) -> tokenizers.Tokenizer:
    """Return the library's tokenizer: without truncation or padding, and with special tokens encoded as text."""
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def _vocabulary(model: Json) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces and their scores
        return {piece: token_id for token_id, (piece, _) in enumerate(vocabulary)}
    return vocabulary


def _matches_byte_pieces(model: Json) -> bool:
    """Return whether the text `<0x41>` would be encoded as that byte. Merges never make such a piece."""
    return bool(model.get("byte_fallback")) and (
        isinstance(model["vocab"], list) or bool(model.get("ignore_merges"))
    )


def _rename_special(tokenizer: Json, special_ids: frozenset[int], mark: str) -> dict[str, Any]:
    """Return the tokenizer.json with special tokens spelled with `mark`, and without merges that produce them."""
    model = dict(tokenizer["model"])
    names = {piece: f"{mark}{i}{mark}" for piece, i in _vocabulary(model).items() if i in special_ids}
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = merges_without(model, names.keys())
    plain = {"special": True, "normalized": False}
    added = [
        token | plain | {"content": f"{mark}{token['id']}{mark}"} if token["id"] in special_ids else token
        for token in tokenizer.get("added_tokens") or []
    ]
    normalizer = tokenizer.get("normalizer")
    if _matches_byte_pieces(model):  # `encode_batch` removes this mark from the ids
        split = {"type": "Replace", "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"}, "content": f"<{mark}"}
        normalizer = {"type": "Sequence", "normalizers": [*([normalizer] if normalizer else []), split]}
    changed = {"model": model, "added_tokens": added, "normalizer": normalizer, "post_processor": None}
    return dict(tokenizer) | changed


def merges_without(model: Json, pieces: Set[str]) -> list[list[str]]:
    """Return the merges of a BPE model that neither need nor produce some pieces, as pairs, first ones first."""
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [
        [left, right]
        for left, right in pairs
        if not {left, right, left + right.removeprefix(prefix)} & pieces
    ]


def _remove_all(ids_N: np.ndarray, run: Sequence[int]) -> np.ndarray:
    if len(ids_N) < len(run):
        return ids_N
    windows = np.lib.stride_tricks.sliding_window_view(ids_N, len(run))
    starts = np.flatnonzero((windows == np.array(run)).all(axis=1))
    return np.delete(ids_N, (starts[:, None] + np.arange(len(run))).ravel())


def _bytes_of_tokens(tokenizer: Json, vocabulary: Mapping[str, int], size: int) -> list[bytes]:
    """Return the bytes of every token. Raises UsageError for an unknown decoder."""
    decoder = tokenizer.get("decoder") or {}
    steps = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    kinds = {step.get("type") for step in steps}
    if unknown := sorted(map(str, kinds - KNOWN_DECODERS)):
        raise UsageError(f"its decoder is {unknown[0]}")
    byte_of_character = byte_level_alphabet() if "ByteLevel" in kinds else {}
    replacements = {
        step["pattern"].get("String", ""): step["content"] for step in steps if step.get("type") == "Replace"
    } | ({SPACE: " "} if "Metaspace" in kinds else {})

    def piece_bytes(piece: str) -> bytes:
        if byte_of_character:
            # A character outside GPT-2's alphabet stands for itself.
            return b"".join(
                bytes([byte_of_character[c]]) if c in byte_of_character else c.encode() for c in piece
            )
        if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        for old, new in replacements.items():
            piece = piece.replace(old, new) if old else piece
        return piece.encode()

    added = {token["id"]: token for token in tokenizer.get("added_tokens") or []}
    token_bytes = [b""] * size
    for piece, token_id in vocabulary.items():
        if token_id not in added:
            token_bytes[token_id] = piece_bytes(piece)
        elif not added[token_id].get("special"):
            token_bytes[token_id] = piece.encode()
    return token_bytes


def byte_level_alphabet() -> dict[str, int]:
    """Return the byte of each character in GPT-2's vocabulary (Radford et al. 2019, section 2.2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}
