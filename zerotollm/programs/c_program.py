"""Write a model as one C99 file, beside its weights and its vocabulary, which are structs of that file."""

import re
from pathlib import Path

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.interop.huggingface import complete_folder
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.programs.c_vocabulary import vocabulary_struct
from zerotollm.programs.source import named_arrays, render
from zerotollm.programs.vocabulary import vocabulary

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
    words, sizes = vocabulary_struct(tokens, tokenizer)
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
