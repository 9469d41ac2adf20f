"""Which words of the source does a translation look at? Cross attention of an encoder-decoder, on one text.

Cross attention was made for this (Bahdanau et al. 2015, arXiv:1409.0473, figure 3). That it looks somewhere does not
show that this place decides: Jain and Wallace 2019 (arXiv:1902.10186).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import CONFIDENCE, ranks
from zerotollm.explain.pair_activations import Inside, look_into_pair, text_pair
from zerotollm.explain.words import readable_token
from zerotollm.model.config import TransformerConfig

DRAWS = 999
MOVED = 0.25
"""Share of the source that the mean place must pass: attention that is all but even may creep in perfect order."""
CLEAR = 0.5
"""Least correlation that is called a movement: neighbouring places look alike, which permutations do not know."""


@dataclass(frozen=True)
class Alignment(Answer):
    """Where T tokens of a translation, each as it is predicted, look in the S tokens of their source."""

    source: tuple[str, ...]
    """pieces, the last the end of the sentence"""
    target: tuple[str, ...]
    """pieces that are predicted, likewise"""
    weights_LHTS: np.ndarray
    """cross attention of each of L x H heads; rows sum to 1"""
    order: float
    """Spearman's correlation of the place in the translation with the mean place looked at; the ends left out"""
    p_value: float
    """of permutations of the translation's tokens, two-sided"""
    entropy: float
    """mean over queries and heads, nats"""
    sharpest: tuple[int, int]
    """layer and head, from 0, with the least entropy"""
    moved: float = 1.0
    """share of the source that the mean place looked at passes from the first token of the translation to the last"""

    def sentence(self) -> str:
        S = len(self.source)
        facts = (
            f"While it writes {len(self.target)} tokens, cross attention is as open as over "
            f"{np.exp(self.entropy):.1f} of the {S} source tokens alike"
        )
        numbers = f"Spearman {self.order:.2f}, p = {self.p_value:.3f}, over {100 * abs(self.moved):.0f} % of the source"
        clear = self.p_value <= 1 - CONFIDENCE and abs(self.order) >= CLEAR
        if not (clear and abs(self.moved) >= MOVED):
            return (
                f"{facts}; that it moves along the source as the translation grows is not shown ({numbers})."
            )
        way = "forwards" if self.order > 0 else "backwards"
        layer, head = self.sharpest
        return (
            f"{facts}, and it moves {way} through the source as the translation grows ({numbers}); "
            f"the most focused is head {head + 1} of layer {layer + 1}."
        )


def align(
    params: Any, model: TransformerConfig, tokenizer: Tokenizer, source: str, target: str, seed: int = 0
) -> Alignment:
    """Reads a source and one translation of it, the model's own or another. Both are cut at the model's length."""
    pair = text_pair(tokenizer, source, target, model.max_length)
    return aligned(look_into_pair(params, model, pair, tokenizer.bos_id), tokenizer, seed)


def aligned(inside: Inside, tokenizer: Tokenizer, seed: int = 0) -> Alignment:
    """The same of a pair that was looked into."""
    weights_LHTS = inside.weights("cross")
    order, p_value = monotony(weights_LHTS.mean((0, 1)), seed)
    entropy_LH = -(weights_LHTS * np.log(np.maximum(weights_LHTS, 1e-30))).sum(-1).mean(-1)
    layer, head = np.unravel_index(entropy_LH.argmin(), entropy_LH.shape)
    return Alignment(
        tuple(readable_token(tokenizer, i) for i in inside.pair.source_S),
        tuple(readable_token(tokenizer, i) for i in inside.pair.target_T),
        weights_LHTS,
        order,
        p_value,
        float(entropy_LH.mean()),
        (int(layer), int(head)),
        distance_moved(weights_LHTS.mean((0, 1))),
    )


def distance_moved(weights_TS: np.ndarray) -> float:
    """Slope of the mean place that query t looks at against t, by least squares, as a share of the whole source from
    the first query to the last; the ends left out as in `monotony`."""
    inner_TS = weights_TS[:-1, :-1]
    T, S = inner_TS.shape
    if min(T, S) < 2:
        return 0.0
    place_T = inner_TS @ np.arange(S) / np.maximum(inner_TS.sum(-1), 1e-12)
    return float(np.polyfit(np.arange(T), place_T, 1)[0] * (T - 1) / (S - 1))


def monotony(weights_TS: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Spearman's correlation of t with the mean place that query t looks at, and its p-value by permutation.

    The last query and the last place, where sentences end, are left out: they belong together in any order of words.
    """
    inner_TS = weights_TS[:-1, :-1]
    if min(inner_TS.shape) < 4:
        return float("nan"), 1.0
    inner_TS = inner_TS / np.maximum(inner_TS.sum(-1, keepdims=True), 1e-12)
    place_T = ranks(inner_TS @ np.arange(inner_TS.shape[1]))
    if np.ptp(place_T) == 0:
        return 0.0, 1.0

    def unit(x: np.ndarray) -> np.ndarray:
        x = x - x.mean()
        return x / np.linalg.norm(x)

    t_T, place_T = unit(np.arange(len(place_T))), unit(place_T)
    shuffled_XT = np.random.default_rng(seed).permuted(np.tile(place_T, (DRAWS, 1)), axis=1)
    order = float(place_T @ t_T)
    as_far = int((np.abs(shuffled_XT @ t_T) >= abs(order) - 1e-12).sum())
    return order, (1 + as_far) / (1 + DRAWS)
