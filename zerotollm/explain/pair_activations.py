"""Pairs of a source and a target, as an encoder-decoder reads them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zerotollm.data.sources.pairs import as_sentence
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.activations import LanguageModel, Recording, Row, Scores, record, row_length


class Pair(NamedTuple):
    """Token ids of a source and its target, both with eos at the end."""

    source_S: np.ndarray
    target_T: np.ndarray


def record_pair(lm: LanguageModel, pair: Pair) -> Recording:
    """Return the activations of an encoder-decoder on one pair, whose sides are padded to one length."""
    S, T = len(pair.source_S), len(pair.target_T)
    length = row_length(max(S, T), lm.config)
    inputs_T = np.append(lm.tokenizer.bos_id, pair.target_T[:-1])
    source_1S, tokens_1S, targets_1S = (
        np.pad(ids, (0, length - len(ids)))[None].astype(np.int32)
        for ids in (pair.source_S, inputs_T, pair.target_T)
    )
    row = Row(tokens_1S, targets_1S, 1, T, source_1S=source_1S, source_length=S)
    return record(lm.params, lm.config, row)


def score_pair(lm: LanguageModel, pair: Pair) -> Scores:
    """Return the scores of the target's tokens, (1, T), given its source."""
    return record_pair(lm, pair).scores()


def text_pair(tokenizer: AnyTokenizer, source: str, target: str, longest: int) -> Pair:
    """Return two texts as a pair, each cut to `longest` tokens."""
    sides = (tokenizer.encode(as_sentence(text))[: longest - 1] for text in (source, target))
    return Pair(*(np.append(ids, tokenizer.eos_id).astype(np.int32) for ids in sides))


def even_pairs(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return at most `count` pairs, evenly spread."""
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    return [pairs[i] for i in chosen]


def pad_rows(rows: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Return rows of different lengths as one array, (B, T)."""
    out_BT = np.full((len(rows), max(map(len, rows))), fill, np.asarray(rows[0]).dtype)
    for row_T, out_T in zip(rows, out_BT, strict=True):
        out_T[: len(row_T)] = row_T
    return out_BT
