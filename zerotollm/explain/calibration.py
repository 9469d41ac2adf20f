"""Can the probabilities be believed, and where in a context does the model know more?"""

from dataclasses import dataclass

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.forward import Scores
from zerotollm.explain.statistics import CONFIDENCE, DRAWS, Estimate, mean_estimate, share_estimate

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

    def sentence(self) -> str:
        sure, right = f"{100 * self.mean_confidence:.1f} %", f"{100 * self.mean_accuracy:.1f} %"
        facts = (
            f"It was {sure} sure of its likeliest token on average, and right {right} of {self.count_X.sum():,} times; "
            f"the calibration error is {self.error:.3f}"
        )
        if self.p_value > 1 - CONFIDENCE:
            return f"{facts}, no more than chance gives exact probabilities ({self.chance_error:.3f})."
        direction = "too sure" if self.mean_confidence > self.mean_accuracy else "not sure enough"
        size = "small, yet not chance" if self.error < SMALL_ERROR else f"it is {direction}"
        return f"{facts} where chance gives {self.chance_error:.3f} (p = {self.p_value:.3f}): {size}."


def calibration(
    confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = BINS, draws: int = DRAWS, seed: int = 0
) -> Calibration:
    """Reliability of predictions (Guo et al. 2017) with a test against exact probabilities.

    The test draws what would have been right if the stated probabilities were (consistency resampling: Bröcker and
    Smith 2007). It takes tokens as independent.
    """
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
        if self.gain.low <= 0 <= self.gain.high:
            return f"From {early} to {late} of a {self.of} no difference in loss is shown: {self.gain} nats."
        falls = self.gain.value > 0
        return (
            f"From {early} to {late} of a {self.of} the loss {'falls' if falls else 'rises'}, by "
            f"{self.gain if falls else _turned(self.gain)} nats: "
            f"{'with more context it predicts better' if falls else 'more context does not help'}."
        )


def _turned(gain: Estimate) -> Estimate:
    return Estimate(-gain.value, -gain.high, -gain.low)


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
