"""Which words of the source does a translation look at? Cross attention of an encoder-decoder on one text.

Cross attention was introduced to align the two (Bahdanau et al. 2015, arXiv:1409.0473, figure 3). Attention to a token
does not prove that this token decides the prediction (Jain and Wallace 2019, arXiv:1902.10186).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.activations import Recording
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import attention_entropy, map_panels
from zerotollm.explain.estimates import CONFIDENCE, ranks
from zerotollm.explain.figures.marks import Panel
from zerotollm.explain.pair_activations import Pair
from zerotollm.explain.words import readable_token

DRAWS = 999
"""Permutations of the test."""
MOVED = 0.25
"""Minimum share of the source that the mean position must cross. Almost even attention may move in perfect order."""
CLEAR = 0.5
"""Minimum correlation that counts as a movement. Neighbouring queries are alike, which permutations ignore."""


@dataclass(frozen=True)
class Alignment(Answer):
    """Cross attention from T tokens of a translation, each as it is predicted, to the S tokens of its source."""

    source: tuple[str, ...]
    """pieces, the last the end of the sentence"""
    target: tuple[str, ...]
    """pieces that are predicted, likewise"""
    weights_LHTS: np.ndarray
    """cross attention of each of L x H heads; rows sum to 1"""
    order: float
    """Spearman's correlation of the position in the translation with the mean position attended to, without the ends"""
    p_value: float
    """two-sided, of permutations of the translation's tokens"""
    entropy: float
    """mean over queries and heads, nats"""
    sharpest: tuple[int, int]
    """layer and head, from 0, with the least entropy"""
    moved: float = 1.0
    """share of the source that the mean position crosses from the first token of the translation to the last"""
    title = "Cross attention"

    def sentence(self) -> str:
        S = len(self.source)
        facts = (
            f"While it writes {len(self.target)} tokens, cross attention has the entropy of "
            f"{np.exp(self.entropy):.1f} equal weights on the {S} source tokens"
        )
        numbers = f"Spearman {self.order:.2f}, p = {self.p_value:.3f}, over {100 * abs(self.moved):.0f} % of the source"
        clear = self.p_value <= 1 - CONFIDENCE and abs(self.order) >= CLEAR
        if not (clear and abs(self.moved) >= MOVED):
            moves = "that it moves along the source as the translation grows"
            return f"{facts}; {moves} is not shown ({numbers})."
        way = "forwards" if self.order > 0 else "backwards"
        layer, head = self.sharpest
        return (
            f"{facts}, and it moves {way} through the source as the translation grows ({numbers}); "
            f"the most focused is head {head + 1} of layer {layer + 1}."
        )

    def panels(self) -> Iterator[Panel]:
        return map_panels("From the translation to its source", self.weights_LHTS, self.target, self.source)


def align(recording: Recording, pair: Pair, tokenizer: AnyTokenizer) -> Alignment:
    """Return the cross attention of a recorded pair, and its movement along the source."""
    weights_LHTS = recording.weights("cross")
    order, p_value = monotony(weights_LHTS.mean((0, 1)))
    entropy_LH = attention_entropy(weights_LHTS).mean(-1)
    layer, head = np.unravel_index(entropy_LH.argmin(), entropy_LH.shape)
    return Alignment(
        tuple(readable_token(tokenizer, i) for i in pair.source_S),
        tuple(readable_token(tokenizer, i) for i in pair.target_T),
        weights_LHTS,
        order,
        p_value,
        float(entropy_LH.mean()),
        (int(layer), int(head)),
        distance_moved(weights_LHTS.mean((0, 1))),
    )


def distance_moved(weights_TS: np.ndarray) -> float:
    """Return the share of the source that the mean position attended to crosses, by least squares over the queries.

    The ends are left out as in `monotony`.
    """
    inner_TS = weights_TS[:-1, :-1]
    T, S = inner_TS.shape
    if min(T, S) < 2:
        return 0.0
    mean_T = inner_TS @ np.arange(S) / np.maximum(inner_TS.sum(-1), 1e-12)
    return float(np.polyfit(np.arange(T), mean_T, 1)[0] * (T - 1) / (S - 1))


def monotony(weights_TS: np.ndarray) -> tuple[float, float]:
    """Return Spearman's correlation of t with the mean position attended to by query t, and its p-value by permutation.

    The last query and the last position are left out: ends of sentences belong together in any order of words.
    """
    inner_TS = weights_TS[:-1, :-1]
    if min(inner_TS.shape) < 4:
        return float("nan"), 1.0
    inner_TS = inner_TS / np.maximum(inner_TS.sum(-1, keepdims=True), 1e-12)
    rank_T = ranks(inner_TS @ np.arange(inner_TS.shape[1]))
    if np.ptp(rank_T) == 0:
        return 0.0, 1.0

    def unit(x: np.ndarray) -> np.ndarray:
        x = x - x.mean()
        return x / np.linalg.norm(x)

    t_T, rank_T = unit(np.arange(len(rank_T))), unit(rank_T)
    shuffled_XT = np.random.default_rng(0).permuted(np.tile(rank_T, (DRAWS, 1)), axis=1)
    order = float(rank_T @ t_T)
    as_far = int((np.abs(shuffled_XT @ t_T) >= abs(order) - 1e-12).sum())
    return order, (1 + as_far) / (1 + DRAWS)
