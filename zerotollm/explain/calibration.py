"""Can the probabilities be believed, and where in a context does the model know more?"""

from dataclasses import dataclass

import numpy as np

from zerotollm.explain.activations import Scores
from zerotollm.explain.answer import Answer
from zerotollm.explain.estimates import (
    CONFIDENCE,
    DRAWS,
    NEGLIGIBLE,
    Estimate,
    mean_estimate,
    share_estimate,
    verdict,
)

BINS = 10
EARLY = 8
"""Places at the beginning of a window that its end is compared with."""
SMALL_ERROR = 0.02
"""Calibration errors below are not worth a warning, however surely they are not 0."""


@dataclass(frozen=True)
class Calibration(Answer):
    """Of the likeliest token at every place: how sure the model was, and how often it was right; X bins."""

    edges: np.ndarray
    """X + 1 probabilities between the bins"""
    count_X: np.ndarray
    confidence_X: np.ndarray
    """mean probability in each bin; nan where it is empty"""
    accuracy_X: Estimate
    """share that was right, with Wilson's intervals"""
    error: float
    """expected calibration error: mean distance of the two, weighted by count (Guo et al. 2017, arXiv:1706.04599,
    equation 3)"""
    chance_error: float
    """what this error would be for probabilities that are exactly right: mean over draws"""
    p_value: float
    """share of such draws with at least this error"""
    mean_confidence: float
    mean_accuracy: float
    excess: Estimate
    """by which it is surer than it is right, over windows"""

    def sentence(self) -> str:
        sure, right = f"{100 * self.mean_confidence:.1f} %", f"{100 * self.mean_accuracy:.1f} %"
        facts = (
            f"It was {sure} sure of its likeliest token on average, and right {right} of {self.count_X.sum():,} times; "
            f"the calibration error is {self.error:.3f}"
        )
        if self.p_value > 1 - CONFIDENCE:
            return f"{facts}, not shown to be more than chance gives exact probabilities ({self.chance_error:.3f})."
        facts += f" where chance gives {self.chance_error:.3f} (p = {self.p_value:.3f})"
        if self.error < SMALL_ERROR:
            return f"{facts}: too small to matter."
        direction = verdict(
            self.excess,
            "it is too sure",
            "it is not sure enough",
            "whether it is too sure or not sure enough is not shown",
        )
        return f"{facts}: {direction}, by {self.excess}."


def calibration(
    confidence_N: np.ndarray,
    correct_N: np.ndarray,
    window_N: np.ndarray | None = None,
    bins: int = BINS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Calibration:
    """Reliability of predictions (Guo et al. 2017) with a test against exact probabilities.

    The test draws what would have been right if the stated probabilities were (consistency resampling: Bröcker and
    Smith 2007): given the text before it, each token is then an independent draw. `window_N` is the window of each
    prediction; without it the rows of (B, T) are windows, and single numbers each their own.
    """
    if window_N is None:
        window_N = np.arange(len(confidence_N)).repeat(np.size(confidence_N) // len(confidence_N))
    confidence_N = np.asarray(confidence_N, np.float64).ravel()
    correct_N = np.asarray(correct_N, np.float64).ravel()
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    count_X = np.bincount(bin_N, minlength=bins)
    sure_X = np.bincount(bin_N, confidence_N, bins)

    def error(right_N: np.ndarray) -> float:
        return float(np.abs(np.bincount(bin_N, right_N, bins) - sure_X).sum() / len(bin_N))

    random = np.random.default_rng(seed)
    by_chance = np.array([error(random.random(len(bin_N)) < confidence_N) for _ in range(draws)])
    observed = error(correct_N)
    size_B = np.bincount(window_N)
    excess_B = np.bincount(window_N, confidence_N - correct_N)[size_B > 0] / size_B[size_B > 0]
    with np.errstate(invalid="ignore"):
        confidence_X = sure_X / count_X
    return Calibration(
        edges=edges,
        count_X=count_X,
        confidence_X=confidence_X,
        accuracy_X=share_estimate(np.bincount(bin_N, correct_N, bins), count_X),
        error=observed,
        chance_error=float(by_chance.mean()),
        p_value=float((1 + (by_chance >= observed).sum()) / (1 + draws)),
        mean_confidence=float(confidence_N.mean()),
        mean_accuracy=float(correct_N.mean()),
        excess=mean_estimate(excess_B),
    )


@dataclass(frozen=True)
class LossByPosition(Answer):
    """Cross-entropy by place in the window; Y ranges of places, each about twice as long as the one before."""

    first_Y: np.ndarray
    """first place of each range, from 0"""
    last_Y: np.ndarray
    nats_Y: Estimate
    """mean loss with intervals over windows"""
    gain: Estimate
    """nats by which the last range is better than `early`, over windows, paired"""
    early: tuple[int, int]
    """first place and the one after the last, from 0: the beginning without the very first place"""
    of: str = "window"
    """in what the places are"""

    def sentence(self) -> str:
        early = f"places {self.early[0] + 1} to {self.early[1]}"
        late = f"places {self.first_Y[-1] + 1} to {self.last_Y[-1] + 1}"
        where, turned = f"From {early} to {late} of a {self.of}", Estimate(*(-x for x in self.gain))
        return verdict(
            self.gain,
            f"{where} the loss falls, by {self.gain} nats: with more context it predicts better.",
            f"{where} the loss rises, by {Estimate(turned.value, turned.high, turned.low)} nats: with more context it "
            "predicts worse.",
            f"{where} no difference in loss of more than {NEGLIGIBLE} nats is shown: {self.gain} nats.",
            NEGLIGIBLE,
        )


def loss_by_position(scores: Scores, of: str = "window") -> LossByPosition:
    """Mean loss in ranges of places 1, 2, 3-4, 5-8, ... of the windows (Kaplan et al. 2020, arXiv:2001.08361,
    section 3.2.1)."""
    _, T = scores.nats_BT.shape
    first_Y = np.unique([0, *(2 ** np.arange(int(np.ceil(np.log2(max(T, 2))))))])
    first_Y = first_Y[first_Y < T]
    last_Y = np.append(first_Y[1:], T) - 1
    means_BY = np.stack(
        [scores.nats_BT[:, a : b + 1].mean(1) for a, b in zip(first_Y, last_Y, strict=True)], axis=1
    ).astype(np.float64)
    early = (min(1, T - 1), min(EARLY, T))
    early_B = scores.nats_BT[:, slice(*early)].astype(np.float64).mean(1)
    return LossByPosition(
        first_Y, last_Y, mean_estimate(means_BY), mean_estimate(early_B - means_BY[:, -1]), early, of
    )
