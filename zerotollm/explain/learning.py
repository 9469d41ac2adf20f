"""What did it learn, when? The loss of frequent and rare tokens, and of the parts of words, over the checkpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.explain.activations import score_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import repetition
from zerotollm.explain.statistics import (
    NEGLIGIBLE,
    Estimate,
    bootstrap,
    mean_estimate,
    student_quantile,
    verdict,
)
from zerotollm.explain.words import KINDS, kinds_of
from zerotollm.model.config import TransformerConfig

BANDS = (10, 100, 1000)
"""Ranks that divide tokens into bands by their frequency in the training text."""
BAND_NAMES = ("the 10 most frequent tokens", "ranks 11 to 100", "ranks 101 to 1,000", "rarer tokens")
PART_NAMES = ("starts of words", "second tokens of words", "later tokens of words", "other tokens")


@dataclass(frozen=True)
class Learning(Answer):
    """Loss in nats per token on held-out text at Y checkpoints, by groups of target tokens."""

    steps_Y: np.ndarray
    loss_Y: Estimate
    band_names: tuple[str, ...]
    band_YG: Estimate
    """by frequency in the training text; nan where a band is empty. Bootstrap intervals over windows"""
    part_names: tuple[str, ...]
    part_YG: Estimate
    """by place in the word"""
    fell_G: Estimate
    """by which the loss of each band is lower at the last checkpoint than at the first, paired by windows; intervals
    hold together"""
    induction_Y: Estimate | None = None
    """nats by which random tokens are better predicted the second time, intervals hold together; None of an
    encoder-decoder"""
    induction_attention_YLH: np.ndarray | None = None
    """what each head gives to the token after the earlier occurrence"""

    def progress(self) -> np.ndarray:
        """Share of the way from the first checkpoint to the last that each band has gone, (Y, G)."""
        first_G, last_G = self.band_YG.value[:1], self.band_YG.value[-1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            return (first_G - self.band_YG.value) / (first_G - last_G)

    def sentence(self) -> str:
        Y = len(self.steps_Y)
        if Y < 2:
            return (
                f"There is one checkpoint, of step {self.steps_Y[0]}: nothing can be said of when it learned."
            )
        full = [g for g in range(len(self.band_names)) if not np.isnan(self.band_YG.value[0, g])]
        often, rare = full[0], full[-1]
        fell = [
            f"{self.band_names[g]} from {self.band_YG.value[0, g]:.2f} to {self.band_YG.value[-1, g]:.2f}"
            for g in (often, rare)
        ]
        progress_YG, learned = self.progress(), []
        for g in dict.fromkeys((often, rare)):
            name = self.band_names[g]
            half = self.steps_Y[int((progress_YG[:, g] >= 0.5).argmax())]
            learned.append(
                verdict(
                    Estimate(*(float(x[g]) for x in self.fell_G)),
                    f"{name} were learned, half of the way by step {half}",
                    f"{name} became worse",
                    f"that {name} were learned is not shown",
                    NEGLIGIBLE,
                )
            )
        copies = ""
        if self.induction_Y is not None:
            there = np.flatnonzero(self.induction_Y.low > NEGLIGIBLE)
            copies = (
                f"; that repeating random tokens helps is first shown at step {self.steps_Y[there[0]]}"
                if len(there)
                else "; that repeating random tokens helps is shown at none of the checkpoints"
            )
        return (
            f"From step {self.steps_Y[0]} to {self.steps_Y[-1]} the loss went, in nats, for {fell[0]}, for {fell[1]}: "
            f"{'; '.join(learned)}{copies}."
        )


def explain_learning(
    checkpoints: Iterable[tuple[int, Any]],
    model: TransformerConfig,
    tokenizer: Tokenizer,
    windows_BW: np.ndarray,
    counts_V: np.ndarray,
    document_bos: int | None = None,
    seed: int = 0,
) -> Learning:
    """Evaluates (step, params) pairs, the oldest first, on the same windows; each is let go before the next is asked
    for.

    Frequency decides what is learned first (Zipf 1949; Chang and Bergen 2022, arXiv:2110.02406), and induction comes
    at once (Olsson et al. 2022, arXiv:2209.11895).
    """
    ids_N = usual_ids(tokenizer, counts_V)
    gains, attention = [], []

    def losses() -> Iterator[tuple[int, np.ndarray]]:
        for step, params in checkpoints:
            induction_BLH, first_B, second_B = repetition(params, model, tokenizer, ids_N, seed)
            gains.append(first_B - second_B)
            attention.append(induction_BLH.mean(0))
            yield step, score_windows(params, windows_BW, model=model, document_bos=document_bos).nats_BT

    found = measure_learning(losses(), tokenizer, windows_BW, counts_V)
    gain_Y = mean_estimate(np.stack(gains, axis=1), looked_at=len(gains))
    return replace(found, induction_Y=gain_Y, induction_attention_YLH=np.stack(attention))


def measure_learning(
    losses: Iterable[tuple[int, np.ndarray]],
    tokenizer: Tokenizer,
    windows_BW: np.ndarray,
    counts_V: np.ndarray,
) -> Learning:
    """The same of (step, nats of every target, (B, T)); nan where there is none. Nothing is said of induction."""
    band_V = np.append(frequency_bands(counts_V), len(BAND_NAMES) - 1)
    band_BT = band_V[np.minimum(windows_BW[:, 1:], len(counts_V))]
    part_BT = word_parts(tokenizer, windows_BW)
    steps, means, bands, parts = [], [], [], []
    first_BT = last_BT = np.zeros(0)
    for step, nats_BT in losses:
        none_BT = np.isnan(nats_BT)
        known_BT = last_BT = np.nan_to_num(nats_BT)
        first_BT = known_BT if not steps else first_BT
        steps.append(step)
        means.append(mean_estimate(np.nanmean(nats_BT, axis=1)))
        bands.append(grouped_means(known_BT, np.where(none_BT, -1, band_BT), len(BAND_NAMES)))
        parts.append(grouped_means(known_BT, np.where(none_BT, -1, part_BT), len(PART_NAMES)))
    loss, band, part = (_stacked(estimates) for estimates in (means, bands, parts))
    # The sentence tells of two bands.
    fell_G = grouped_means(first_BT - last_BT, np.where(none_BT, -1, band_BT), len(BAND_NAMES), looked_at=2)
    return Learning(np.array(steps), loss, BAND_NAMES, band, PART_NAMES, part, fell_G)


def _stacked(estimates: list[Estimate]) -> Estimate:
    return Estimate(*map(np.array, zip(*estimates, strict=True)))


def usual_ids(tokenizer: Tokenizer, counts_V: np.ndarray) -> np.ndarray:
    """Ids that occur in the training text and are no special tokens or bytes."""
    usual_V = ~np.isin(kinds_of(tokenizer), [KINDS.index("special"), KINDS.index("byte")])
    seen_V = usual_V & (counts_V > 0)
    return np.flatnonzero(seen_V if seen_V.sum() > 1 else usual_V)


def frequency_bands(counts_V: np.ndarray) -> np.ndarray:
    """The band of every id, (V,): 0 the most frequent."""
    order_V = np.argsort(-counts_V, kind="stable")
    rank_V = np.empty(len(counts_V), int)
    rank_V[order_V] = np.arange(len(counts_V))
    return np.searchsorted(BANDS, rank_V, side="right")


def word_parts(tokenizer: Tokenizer, windows_BW: np.ndarray) -> np.ndarray:
    """Where in its word each target stands, (B, T): an index into `PART_NAMES`."""
    kinds_V = np.append(kinds_of(tokenizer), KINDS.index("special"))
    kind_BW = kinds_V[np.minimum(windows_BW, len(kinds_V) - 1)]
    starts_BW, inner_BW = kind_BW == KINDS.index("word"), kind_BW == KINDS.index("word part")
    since_BW = np.zeros(windows_BW.shape, int)
    for t in range(windows_BW.shape[1]):
        before_B = since_BW[:, t - 1] if t else np.zeros(len(windows_BW), int)
        since_BW[:, t] = np.where(starts_BW[:, t], 1, np.where(inner_BW[:, t], before_B + 1, 0))
    return np.array([3, 0, 1, 2])[np.minimum(since_BW[:, 1:], 3)]


def grouped_means(nats_BT: np.ndarray, group_BT: np.ndarray, groups: int, looked_at: int = 0) -> Estimate:
    """Mean loss of each group of tokens, (G,), with bootstrap intervals over windows; nan where a group is empty.

    With `looked_at` comparisons the intervals are Student's with the bootstrap's deviation, and hold together: so far
    out in the tails, percentiles of `DRAWS` samples are few.
    """
    one_hot_BTG = group_BT[..., None] == np.arange(groups)
    sums_BG, sizes_BG = (nats_BT[..., None] * one_hot_BTG).sum(1), one_hot_BTG.sum(1)

    def means(weights_B: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights_B @ sums_BG) / (weights_B @ sizes_BG)

    drawn = bootstrap(means, len(nats_BT))
    whole_G = means(np.ones(len(nats_BT)))
    drawn = np.where(sizes_BG.sum(0) > 0, drawn, 0.0)
    with np.errstate(all="ignore"):
        if looked_at:
            half_G = student_quantile(max(len(nats_BT) - 1, 1), looked_at) * np.nanstd(drawn, axis=0, ddof=1)
            low_G, high_G = whole_G - half_G, whole_G + half_G
        else:
            low_G, high_G = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    empty_G = np.isnan(whole_G)
    return Estimate(whole_G, np.where(empty_G, np.nan, low_G), np.where(empty_G, np.nan, high_G))
