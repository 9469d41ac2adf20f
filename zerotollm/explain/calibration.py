"""Are the probabilities calibrated, and does the loss fall with more context?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

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
from zerotollm.explain.figures.marks import Axis, Bars, Dots, Line, Panel, said

BINS = 10
EARLY = 8
"""Positions at the beginning of a window that its end is compared with."""
SMALL_ERROR = 0.02
"""Calibration error below which even a significant one is not worth a warning."""


@dataclass(frozen=True)
class Calibration(Answer):
    """Confidence and accuracy of the likeliest token at every position, in X bins of confidence."""

    edges: np.ndarray
    """X + 1 limits of the bins"""
    count_X: np.ndarray
    confidence_X: np.ndarray
    """mean probability in each bin; nan in an empty one"""
    accuracy_X: Estimate[np.ndarray]
    """with Wilson's intervals"""
    error: float
    """expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3)"""
    chance_error: float
    """mean of this error over draws from exact probabilities"""
    p_value: float
    """share of these draws with at least the observed error"""
    mean_confidence: float
    mean_accuracy: float
    excess: Estimate[float]
    """confidence minus accuracy, over windows"""
    title = "Can the probabilities be believed?"

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
        otherwise = "whether it is too sure or not sure enough is not shown"
        direction = verdict(self.excess, "it is too sure", "it is not sure enough", otherwise)
        return f"{facts}: {direction}, by {self.excess}."

    def panels(self) -> Iterator[Panel]:
        full = np.flatnonzero(self.count_X)
        confidence_X, accuracy, low, high = (x[full] for x in (self.confidence_X, *self.accuracy_X))
        percent = (100 * x for x in (confidence_X, accuracy, low, high))
        template = "sure to {:.1f} %, right {:.1f} % [{:.1f}, {:.1f}] of {:,} times"
        hover = said(template, *percent, self.count_X[full])
        marks = (
            Line([0, 1], [0, 1], "exactly right", 6, dashed=True),
            Dots(confidence_X, accuracy, "this model", 0, low, high, hover=hover),
        )
        unit = (-0.02, 1.02)
        axes = Axis("how sure it was", span=unit), Axis("how often it was right", span=unit)
        yield Panel("Is 70 % right 70 % of the time?", marks, *axes)
        middle_X = 50 * (self.edges[:-1] + self.edges[1:])
        count = Bars(middle_X, self.count_X, hover=said("{:,} predictions", self.count_X))
        yield Panel("How sure it is how often", (count,), Axis("how sure, %"), Axis("predictions"))


def calibration(
    confidence_N: np.ndarray, correct_N: np.ndarray, window_N: np.ndarray | None = None
) -> Calibration:
    """Return the reliability of predictions (Guo et al. 2017), with a test against exact probabilities.

    The test draws which predictions would be right if the probabilities were exact (consistency resampling: Bröcker and
    Smith 2007). Given the text before it, each token is an independent draw. `window_N` numbers the window of each
    prediction. By default the rows of (B, T) are windows, and each prediction of (N,) is one.
    """
    if window_N is None:
        window_N = np.arange(len(confidence_N)).repeat(np.size(confidence_N) // len(confidence_N))
    confidence_N = np.asarray(confidence_N, np.float64).ravel()
    correct_N = np.asarray(correct_N, np.float64).ravel()
    bin_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    count_X = np.bincount(bin_N, minlength=BINS)
    sum_X = np.bincount(bin_N, confidence_N, BINS)

    def error(right_N: np.ndarray) -> float:
        return float(np.abs(np.bincount(bin_N, right_N, BINS) - sum_X).sum() / len(bin_N))

    random = np.random.default_rng(0)
    by_chance = np.array([error(random.random(len(bin_N)) < confidence_N) for _ in range(DRAWS)])
    observed = error(correct_N)
    size_B = np.bincount(window_N)
    excess_B = np.bincount(window_N, confidence_N - correct_N)[size_B > 0] / size_B[size_B > 0]
    with np.errstate(invalid="ignore"):
        confidence_X = sum_X / count_X
    return Calibration(
        edges=np.linspace(0, 1, BINS + 1),
        count_X=count_X,
        confidence_X=confidence_X,
        accuracy_X=share_estimate(np.bincount(bin_N, correct_N, BINS), count_X),
        error=observed,
        chance_error=float(by_chance.mean()),
        p_value=float((1 + (by_chance >= observed).sum()) / (1 + DRAWS)),
        mean_confidence=float(confidence_N.mean()),
        mean_accuracy=float(correct_N.mean()),
        excess=mean_estimate(excess_B),
    )


@dataclass(frozen=True)
class LossByPosition(Answer):
    """Cross-entropy by position in the window, in Y ranges that double in length."""

    first_Y: np.ndarray
    """first position of each range, from 0"""
    last_Y: np.ndarray
    nats_Y: Estimate[np.ndarray]
    """mean loss, with intervals over windows"""
    gain: Estimate[float]
    """loss of `early` minus loss of the last range, nats, paired over windows"""
    early: tuple[int, int]
    """positions from 0, half open: the beginning without the first position"""
    of: str = "window"
    """what the positions are in"""
    title = "Loss by position"

    def sentence(self) -> str:
        early = f"places {self.early[0] + 1} to {self.early[1]}"
        late = f"places {self.first_Y[-1] + 1} to {self.last_Y[-1] + 1}"
        where, gain = f"From {early} to {late} of a {self.of}", self.gain
        return verdict(
            gain,
            f"{where} the loss falls, by {gain} nats: with more context it predicts better.",
            f"{where} the loss rises, by {Estimate(-gain.value, -gain.high, -gain.low)} nats: with more context it "
            "predicts worse.",
            f"{where} no difference in loss of more than {NEGLIGIBLE} nats is shown: {gain} nats.",
            NEGLIGIBLE,
        )

    def panels(self) -> Iterator[Panel]:
        middle_Y = np.sqrt((self.first_Y + 1) * (self.last_Y + 1))
        template = "places {} to {}: {:.3f} [{:.3f}, {:.3f}] nats"
        hover = said(template, self.first_Y + 1, self.last_Y + 1, *self.nats_Y)
        value, low, high = self.nats_Y
        line = Line(middle_Y, value, "", 0, low, high, hover, dots=True)
        axes = Axis(f"place in the {self.of}", log=True), Axis("nats per token")
        yield Panel("Does more context help?", (line,), *axes)


def loss_by_position(nats_BT: np.ndarray, of: str = "window") -> LossByPosition:
    """Return the mean loss at positions 1, 2, 3-4, 5-8, ... of the windows (Kaplan et al. 2020, arXiv:2001.08361,
    section 3.2.1)."""
    _, T = nats_BT.shape
    first_Y = np.append(0, 2 ** np.arange(int(np.ceil(np.log2(max(T, 2))))))
    first_Y = first_Y[first_Y < T]
    last_Y = np.append(first_Y[1:], T) - 1
    ranges = zip(first_Y, last_Y, strict=True)
    means_BY = np.stack([nats_BT[:, a : b + 1].mean(1) for a, b in ranges], axis=1).astype(np.float64)
    early = (min(1, T - 1), min(EARLY, T))
    early_B = nats_BT[:, slice(*early)].astype(np.float64).mean(1)
    gain = mean_estimate(early_B - means_BY[:, -1])
    return LossByPosition(first_Y, last_Y, mean_estimate(means_BY), gain, early, of)
