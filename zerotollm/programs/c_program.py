"""Write a model as one C99 file, beside its weights and its vocabulary, which are structs of that file."""

import re
import sys
import unicodedata
from pathlib import Path
from typing import Literal, cast

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.interop.huggingface import complete_folder
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.programs.source import named_arrays, render
from zerotollm.programs.vocabulary import vocabulary
from zerotollm.types import Json

ORDER = (
    *("embedding", "encoder", "decoder", "token_shift", "positions", "layer"),
    *("attention_norm", "attention", "cross_attention_norm", "cross_attention", "feed_forward_norm", "feed_forward"),
    *("final_norm", "head", "head_bias"),
    *(f"{name}{bias}" for name in ("query", "key", "value", "output") for bias in ("", "_bias")),
    *("query_norm", "key_norm"),
    *(f"{name}{bias}" for name in ("gate", "up", "down") for bias in ("", "_bias")),
    *("scale", "bias", "weights"),
)  # fmt: skip
"""The members of the structs of the program, in their order."""
TABLES = frozenset({"embedding", "positions", "weights"})
"""Arrays of one vector a row. All others with two axes are matrices, which the program reads as [output][input]."""


def write_c(
    out: Path, params: Params, model: TransformerConfig, tokenizer: AnyTokenizer, *, title: str
) -> None:
    """Write model.c, weights.bin and vocabulary.bin to a new folder.

    The program has the parts of this model alone. Raises UsageError where it cannot tokenize as the model does.
    """
    tokens, arrays = vocabulary(tokenizer), named_arrays(params)
    weights = b"".join(_stored(name, arrays[name]).tobytes() for name in sorted(arrays, key=_place))
    words, sizes = _vocabulary_struct(tokens, tokenizer)
    files = sizes | {"weights_sum": _weighted_sum(weights), "vocabulary_sum": _weighted_sum(words)}
    size = sum(x.size for x in arrays.values())
    source = render("model.c.jinja", model, title=title, parameters=size, vocabulary=tokens, files=files)
    source = re.sub(r"\n{3,}", "\n\n", source)
    with complete_folder(out) as folder:
        (folder / "model.c").write_text(source, encoding="utf-8")
        (folder / "weights.bin").write_bytes(weights)
        (folder / "vocabulary.bin").write_bytes(words)


def _place(name: str) -> list[tuple[int, int]]:
    """Return where the array of a dotted name stands in the struct: the place of each part of its name."""
    parts = [part.partition("layer_") for part in name.split(".")]
    return [
        (ORDER.index("layer"), int(number)) if layer else (ORDER.index(part), 0)
        for part, layer, number in parts
    ]


def _stored(name: str, x: np.ndarray) -> np.ndarray:
    matrix = x.ndim == 2 and name.rpartition(".")[2] not in TABLES
    return np.ascontiguousarray(x.T if matrix else x, "<f4")


def _weighted_sum(content: bytes) -> int:
    """Return the sum of the sums of the first 1, 2, ... words of 32 bits, modulo 2^64."""
    return int(np.cumsum(np.frombuffer(content, "<u4"), dtype=np.uint64).sum(dtype=np.uint64))


def _vocabulary_struct(tokens: Json, tokenizer: AnyTokenizer) -> tuple[bytes, Json]:
    """Return vocabulary.bin and the sizes of its arrays."""
    texts = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    spelled = [i for i, token in enumerate(tokens["tokens"]) if isinstance(token, str) and i != tokens["unk"]]
    words = sorted(spelled, key=texts.__getitem__)
    text = b"".join(texts)
    text += bytes(-len(text) % 4)
    form = tokens["normalization"]
    tables = _normalization(form) if form else {}
    arrays = [
        np.array(tokens["scores"], "<f4"),
        np.cumsum([0, *map(len, texts)], dtype="<i4"),
        np.array(words, "<i4"),
        *tables.values(),
        tokenizer.utf8.next_state_SV,
    ]
    sizes: Json = {
        "tokens": len(texts),
        "words": len(words),
        "text": len(text),
        "longest": max(map(len, texts)),
        "bytes": next((i for i, token in enumerate(tokens["tokens"]) if token == [0]), None),
        **{name: len(table) for name, table in tables.items()},
    }
    if form:
        sizes["expansion"] = _expansion(form)
    return b"".join(x.tobytes() for x in arrays) + text, sizes


def _normalization(form: Literal["NFC", "NFKC"]) -> dict[str, np.ndarray]:
    """Return the tables of a Unicode normal form (Unicode Standard Annex 15), each with sorted rows."""
    decomposing = cast(Literal["NFD", "NFKD"], form.replace("C", "D"))
    composed, decomposed, parts, combining = [], [], [], []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.combining(character):
            combining.append((code, unicodedata.combining(character)))
        decomposition = unicodedata.normalize(decomposing, character)
        if decomposition == character:
            continue
        decomposed.append((code, len(parts)))
        parts += [*map(ord, decomposition), 0]
        pair = _canonical_pair(character)
        if pair and unicodedata.normalize("NFC", character) == character:
            composed.append((*pair, code))
    tables = {"composed": sorted(composed), "decomposed": decomposed, "parts": parts, "combining": combining}
    return {name: np.array(table, "<u4") for name, table in tables.items()}


def _canonical_pair(character: str) -> tuple[int, ...] | None:
    """Return the two characters that compose this one, if there are two."""
    syllable = (
        ord(character) - 0xAC00
    )  # of Hangul: they compose by a rule (The Unicode Standard, section 3.12)
    if 0 <= syllable < 11172:
        last = syllable % 28
        if last:
            return ord(character) - last, 0x11A7 + last
        return 0x1100 + syllable // 588, 0x1161 + syllable % 588 // 28
    fields = unicodedata.decomposition(character).split()
    return tuple(int(code, 16) for code in fields) if len(fields) == 2 and "<" not in fields[0] else None


def _expansion(form: Literal["NFC", "NFKC"]) -> int:
    """Return the most bytes of UTF-8 that one byte may become in a normal form, rounded up."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    decomposing = cast(Literal["NFD", "NFKD"], form.replace("C", "D"))
    ratios = (-(-len(unicodedata.normalize(decomposing, x).encode()) // len(x.encode())) for x in characters)
    return max(ratios)
