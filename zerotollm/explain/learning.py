"""What did it learn, when? The loss of frequent and rare tokens, and by place in the word, over the checkpoints."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.explain.activations import LanguageModel, score_windows
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import repetition
from zerotollm.explain.estimates import (
    NEGLIGIBLE,
    Estimate,
    bootstrap,
    mean_estimate,
    student_quantile,
    verdict,
)
from zerotollm.explain.figures.marks import Axis, Line, Panel, said
from zerotollm.explain.words import KINDS, token_kinds

BANDS = (10, 100, 1000)
"""Frequency ranks in the training text that separate bands of tokens."""
BAND_NAMES = ("the 10 most frequent tokens", "ranks 11 to 100", "ranks 101 to 1,000", "rarer tokens")
PART_NAMES = ("starts of words", "second tokens of words", "later tokens of words", "other tokens")


@dataclass(frozen=True)
class Learning(Answer):
    """Held-out loss in nats per token at Y checkpoints, by G groups of target tokens."""

    steps_Y: np.ndarray
    loss_Y: Estimate[np.ndarray]
    band_names: tuple[str, ...]
    band_YG: Estimate[np.ndarray]
    """by frequency in the training text; nan if a band is empty. Bootstrap intervals over windows"""
    part_names: tuple[str, ...]
    part_YG: Estimate[np.ndarray]
    """by place in the word"""
    fell_G: Estimate[np.ndarray]
    """loss of each band at the first minus the last checkpoint, paired by windows; intervals all hold together"""
    induction_Y: Estimate[np.ndarray] | None = None
    """nats that repeating random tokens saves; intervals all hold together. None for an encoder-decoder"""
    induction_attention_YLH: np.ndarray | None = None
    """attention of each head to the token after the earlier occurrence"""
    title = "What it learned when"

    def sentence(self) -> str:
        if len(self.steps_Y) < 2:
            step = self.steps_Y[0]
            return f"Only the checkpoint of step {step} exists, which does not show when it learned."
        loss_YG = self.band_YG.value
        not_empty = np.flatnonzero(~np.isnan(loss_YG[0]))
        ends = int(not_empty[0]), int(not_empty[-1])
        fell = [f"{self.band_names[g]} from {loss_YG[0, g]:.2f} to {loss_YG[-1, g]:.2f}" for g in ends]
        learned = []
        for g in dict.fromkeys(ends):
            fell_Y, name = loss_YG[0, g] - loss_YG[:, g], self.band_names[g]
            with np.errstate(divide="ignore", invalid="ignore"):
                half = self.steps_Y[int((fell_Y / fell_Y[-1] >= 0.5).argmax())]
            shown, opposite = f"{name} were learned, half of the way by step {half}", f"{name} became worse"
            otherwise = f"that {name} were learned is not shown"
            learned.append(verdict(self.fell_G.at(g), shown, opposite, otherwise, NEGLIGIBLE))
        if self.induction_Y is not None:
            shown = np.flatnonzero(self.induction_Y.low > NEGLIGIBLE)
            when = f"first shown at step {self.steps_Y[shown[0]]}" if len(shown) else "shown at no checkpoint"
            learned.append(f"that repeating random tokens helps is {when}")
        return (
            f"From step {self.steps_Y[0]} to {self.steps_Y[-1]} the loss went, in nats, for {fell[0]}, for {fell[1]}: "
            f"{'; '.join(learned)}."
        )

    def panels(self) -> Iterator[Panel]:
        yield self._loss_panel("Loss by frequency of the token", self.band_names, self.band_YG)
        yield self._loss_panel("Loss by place in the word", self.part_names, self.part_YG)
        if self.induction_Y is not None:
            hover = said("step {:,}: {:+.3f} [{:+.3f}, {:+.3f}] nats", self.steps_Y, *self.induction_Y)
            value, low, high = self.induction_Y
            line = Line(self.steps_Y, value, "", 0, low, high, hover, dots=True)
            title = "Induction: what repeating random tokens saves"
            yield Panel(title, (line,), Axis("step"), Axis("nats per token"), height=380)

    def _loss_panel(self, title: str, names: tuple[str, ...], loss_YG: Estimate[np.ndarray]) -> Panel:
        lines = []
        for g, name in enumerate(names):
            value, low, high = (x_YG[:, g] for x_YG in loss_YG)
            if np.isnan(value).all():
                continue
            hover = said("step {:,}, {}: {:.3f} [{:.3f}, {:.3f}]", self.steps_Y, name, value, low, high)
            lines.append(Line(self.steps_Y, value, name, g, low, high, hover, dots=True))
        return Panel(title, tuple(lines), Axis("step"), Axis("nats per token"), height=380)


def explain_learning(
    checkpoints: Iterable[tuple[int, LanguageModel]],
    tokenizer: AnyTokenizer,
    windows_BW: np.ndarray,
    counts_V: np.ndarray,
) -> Learning:
    """Evaluate checkpoints with their steps, the oldest first, on the same windows. One is in memory at a time.

    Frequent tokens are learned first (Zipf 1949; Chang and Bergen 2022, arXiv:2110.02406), and induction appears
    abruptly (Olsson et al. 2022, arXiv:2209.11895).
    """
    ids_N = text_token_ids(tokenizer, counts_V)
    gains, attention = [], []

    def losses() -> Iterator[tuple[int, np.ndarray]]:
        for step, lm in checkpoints:
            induction_BLH, first_B, second_B = repetition(lm, ids_N)
            gains.append(first_B - second_B)
            attention.append(induction_BLH.mean(0))
            yield step, score_windows(lm, windows_BW).nats_BT

    learning = measure_learning(losses(), tokenizer, windows_BW, counts_V)
    gain_Y = mean_estimate(np.stack(gains, axis=1), comparisons=len(gains))
    return replace(learning, induction_Y=gain_Y, induction_attention_YLH=np.stack(attention))


def measure_learning(
    losses: Iterable[tuple[int, np.ndarray]],
    tokenizer: AnyTokenizer,
    windows_BW: np.ndarray,
    counts_V: np.ndarray,
) -> Learning:
    """Group (step, nats of every target (B, T), nan for padding), the oldest first, without induction."""
    band_V = np.append(frequency_bands(counts_V), len(BAND_NAMES) - 1)
    band_BT = band_V[np.minimum(windows_BW[:, 1:], len(counts_V))]
    part_BT = word_parts(tokenizer, windows_BW)
    steps, means, bands, parts = [], [], [], []
    first_BT = last_BT = padding_BT = np.zeros(0)
    for step, nats_BT in losses:
        padding_BT, last_BT = np.isnan(nats_BT), np.nan_to_num(nats_BT)
        first_BT = first_BT if steps else last_BT
        steps.append(step)
        means.append(mean_estimate(np.nanmean(nats_BT, axis=1)))
        bands.append(grouped_means(last_BT, np.where(padding_BT, -1, band_BT), len(BAND_NAMES)))
        parts.append(grouped_means(last_BT, np.where(padding_BT, -1, part_BT), len(PART_NAMES)))
    loss, band, part = (Estimate(*map(np.array, zip(*x, strict=True))) for x in (means, bands, parts))
    # The sentence compares two bands.
    group_BT = np.where(padding_BT, -1, band_BT)
    fell_G = grouped_means(first_BT - last_BT, group_BT, len(BAND_NAMES), comparisons=2)
    return Learning(np.array(steps), loss, BAND_NAMES, band, PART_NAMES, part, fell_G)


def text_token_ids(tokenizer: AnyTokenizer, counts_V: np.ndarray) -> np.ndarray:
    """Return ids that occur in the training text, without special tokens and bytes; all such ids if fewer than two."""
    ordinary_V = ~np.isin(token_kinds(tokenizer), [KINDS.index("special"), KINDS.index("byte")])
    seen_V = ordinary_V & (counts_V > 0)
    return np.flatnonzero(seen_V if seen_V.sum() > 1 else ordinary_V)


def frequency_bands(counts_V: np.ndarray) -> np.ndarray:
    """Return the band of every id, (V,): 0 is the most frequent."""
    rank_V = np.argsort(np.argsort(-counts_V, kind="stable"))
    return np.searchsorted(BANDS, rank_V, side="right")


def word_parts(tokenizer: AnyTokenizer, windows_BW: np.ndarray) -> np.ndarray:
    """Return the place of each target in its word, (B, T): an index into `PART_NAMES`."""
    kinds_V = np.append(token_kinds(tokenizer), KINDS.index("special"))
    kind_BW = kinds_V[np.minimum(windows_BW, len(kinds_V) - 1)]
    place_B, places = np.zeros(len(windows_BW), int), []
    for kind_B in kind_BW.T:
        inside_B = np.where(kind_B == KINDS.index("word part"), place_B + 1, 0)
        place_B = np.where(kind_B == KINDS.index("word"), 1, inside_B)
        places.append(place_B)
    return np.array([3, 0, 1, 2])[np.minimum(np.stack(places[1:], axis=1), 3)]


def grouped_means(
    nats_BT: np.ndarray, group_BT: np.ndarray, groups: int, comparisons: int = 0
) -> Estimate[np.ndarray]:
    """Return the mean loss of each group of tokens, (G,), with bootstrap intervals over windows; nan if empty.

    Intervals of that many `comparisons` all hold together: they are Student's with the bootstrap's standard deviation,
    because `DRAWS` samples are too few for percentiles far in the tails.
    """
    one_hot_BTG = group_BT[..., None] == np.arange(groups)
    sums_BG, sizes_BG = (nats_BT[..., None] * one_hot_BTG).sum(1), one_hot_BTG.sum(1)

    def means(weights_B: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights_B @ sums_BG) / (weights_B @ sizes_BG)

    means_G = means(np.ones(len(nats_BT)))
    empty_G = np.isnan(means_G)
    drawn_XG = np.where(empty_G, 0.0, bootstrap(means, len(nats_BT)))
    with np.errstate(all="ignore"):
        if comparisons:
            quantile = student_quantile(max(len(nats_BT) - 1, 1), comparisons)
            half_G = quantile * np.nanstd(drawn_XG, axis=0, ddof=1)
            low_G, high_G = means_G - half_G, means_G + half_G
        else:
            low_G, high_G = np.nanquantile(drawn_XG, [0.025, 0.975], axis=0)
    return Estimate(means_G, np.where(empty_G, np.nan, low_G), np.where(empty_G, np.nan, high_G))
