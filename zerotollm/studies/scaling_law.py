"""The fit of `zerotollm.planning.law.Law` with intervals, and predictions from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, log
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from zerotollm.planning.law import Law

DELTA = 1e-3
"""Residual of log L from which on the Huber loss is linear: Chinchilla's value."""
RESAMPLES = 200
COVER = 0.95
"""Share of the resamples that an interval holds."""
CONSTANTS = 5
EXPONENTS = (0.01, 3.0)
"""Bounds of alpha and beta: a resample may not determine them at all, and then ends at a bound."""


class Point(NamedTuple):
    """One trained model."""

    name: str
    parameters: int
    """N"""
    tokens: int
    """D"""
    bpb: float
    """loss: bits per byte of the whole validation split"""

    @property
    def compute(self) -> float:
        """C = 6 N D: floating-point operations without those of attention scores."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True)
class Fit:
    """A law, and the laws of resampled points, which give its uncertainty."""

    points: tuple[Point, ...]
    law: Law
    resamples: tuple[Law, ...]

    @property
    def residuals(self) -> tuple[float, ...]:
        """Measured over fitted loss, minus 1, of each point."""
        return tuple(p.bpb / self.law(p.parameters, p.tokens) - 1 for p in self.points)

    def interval(self, number: Callable[[Law], float]) -> tuple[float, float]:
        """Return the percentile interval of a number that a law gives: `fit.interval(lambda law: law.E)`."""
        return _percentiles([number(law) for law in self.resamples])


class Prediction(NamedTuple):
    """The loss of a run that was not in the fit."""

    value: float
    low: float
    high: float


def fit_law(points: Sequence[Point]) -> Fit:
    """Fit a law by Chinchilla's approach 3 (arXiv:2203.15556): least Huber loss of log L, by L-BFGS from a grid.

    Losses are summed, not averaged, and the tolerance is tight: stopping early made Chinchilla's own constants wrong
    (arXiv:2404.10102). Each of `RESAMPLES` draws of the points with replacement is fitted from the best constants.
    Raises ValueError for fewer points than constants.
    """
    if len(points) < CONSTANTS:
        raise ValueError(f"{len(points)} points cannot fix {CONSTANTS} constants")
    log_NDL = np.log([[p.parameters, p.tokens, p.bpb] for p in points])
    # Sizes over their geometric mean: exponents and coefficients then hardly depend on one another.
    middle = log_NDL[:, :2].mean(axis=0)
    log_NDL[:, :2] -= middle
    solutions = [_minimize(start, log_NDL) for start in _starts(log_NDL)]
    best = min(solutions, key=lambda solution: solution[1])[0]
    drawn = np.random.default_rng(0).integers(len(points), size=(RESAMPLES, len(points)))
    resamples = [_minimize(best, log_NDL[rows])[0] for rows in drawn]
    laws = [_law(solution, middle) for solution in (best, *resamples)]
    return Fit(tuple(points), laws[0], tuple(laws[1:]))


def predict(fit: Fit, parameters: int, tokens: int) -> Prediction:
    """Predict the loss of one more run. The interval holds the uncertainty of the law and the scatter of runs.

    The scatter is that of the residuals times sqrt(P / (P - 5)) for P points, because the law was fitted to them.
    """
    count = len(fit.points)
    residuals = np.log1p(fit.residuals) * np.sqrt(count / max(1, count - CONSTANTS))
    scatter = np.random.default_rng(0).choice(residuals, len(fit.resamples))
    laws = np.array([law(parameters, tokens) for law in fit.resamples])
    return Prediction(float(fit.law(parameters, tokens)), *_percentiles(laws * np.exp(scatter)))


def optimal_parameters(law: Law, compute: float) -> float:
    """Return the N of least loss among all N, D with 6 N D = `compute` (arXiv:2203.15556, equation 4)."""
    ratio = log(law.alpha * law.A) - log(law.beta * law.B) + law.beta * log(compute / 6)
    return exp(min(ratio / (law.alpha + law.beta), 100.0))  # a resample may put it beyond all numbers


def is_wide(low: float, high: float) -> bool:
    """Return whether the ends of an interval of a positive number differ threefold or more."""
    return low <= 0 or high >= 3 * low


def _percentiles(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - COVER) / 2, (1 + COVER) / 2])
    return float(low), float(high)


def _starts(log_NDL: np.ndarray) -> list[tuple[float, ...]]:
    """Return a grid of (log E, log A, log B, alpha, beta), A and B for the middle size: shares of the middle loss."""
    least, middle = float(np.exp(log_NDL[:, 2].min())), float(np.exp(log_NDL[:, 2].mean()))
    return [
        (log(least * e), log((middle - least * e) * a), log((middle - least * e) * (1 - a)), alpha, beta)
        for e, a, alpha, beta in product((0.2, 0.5, 0.9), (0.2, 0.5, 0.8), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0))
    ]


def _minimize(start: Sequence[float] | np.ndarray, log_NDL: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the solution, in the form of a start, and its Huber loss in units of DELTA^2."""
    log_N, log_D, log_L = log_NDL.T
    one = np.ones_like(log_N)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = theta
        terms_3P = np.stack([e * one, a - alpha * log_N, b - beta * log_D])
        top = terms_3P.max(axis=0)
        fitted = top + np.log(np.exp(terms_3P - top).sum(axis=0))
        share_E, share_A, share_B = np.exp(terms_3P - fitted)
        r = (fitted - log_L) / DELTA
        slope = np.clip(r, -1, 1)  # of the Huber loss: r^2 / 2 within 1, a line beyond
        gradient_5P = np.stack([share_E, share_A, share_B, -share_A * log_N, -share_B * log_D])
        return float((slope * (r - slope / 2)).sum()), gradient_5P @ slope / DELTA

    most = float(log_L.max())
    bounds = [(most - 12, most)] * 3 + [EXPONENTS] * 2
    inside = np.clip(start, *np.transpose(bounds))
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20}
    result = minimize(loss, inside, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return result.x, float(result.fun)


def _law(solution: np.ndarray, middle: np.ndarray) -> Law:
    """Return the law of a solution for sizes over their geometric mean."""
    e, a, b, alpha, beta = map(float, solution)
    a, b = a + alpha * float(middle[0]), b + beta * float(middle[1])
    E, A, B = map(float, np.exp([e, a, b]))
    return Law(E, A, B, alpha, beta)
