"""Intervals and tests, so that no sentence claims more than its numbers show."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from zerotollm.evaluation.statistics import Outcome

CONFIDENCE = 0.95
DRAWS = 200
"""Bootstrap samples and permutations, where nothing else is said: p-values come in steps of 1/201."""


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_estimate(values_N: np.ndarray, looked_at: int = 1) -> Estimate:
    """Return the mean over the first axis with Student's interval (Student 1908); of arrays, an Estimate of arrays.

    Values must be independent: give one a window or a text, not one a token. A single value has an endless interval.
    With `looked_at` comparisons, all their intervals together hold the truth with 95 % (Bonferroni).
    """
    from scipy.special import stdtrit

    values_N = np.asarray(values_N, np.float64)
    N = len(values_N)
    center = values_N.mean(0)
    if N < 2:
        return Estimate(center, center - math.inf, center + math.inf)
    half = stdtrit(N - 1, 1 - (1 - CONFIDENCE) / (2 * looked_at)) * values_N.std(0, ddof=1) / math.sqrt(N)
    return Estimate(center, center - half, center + half)


def outcome_of(difference: Estimate) -> Outcome:
    """Return what the interval of a difference says: shown (all above 0), opposite shown (all below 0), not shown."""
    return "shown" if difference.low > 0 else "opposite shown" if difference.high < 0 else "not shown"


def share_estimate(hits: np.ndarray | int, trials: np.ndarray | int) -> Estimate:
    """hits / trials with Wilson's score interval (Wilson 1927), also for arrays; 0 trials: anything from 0 to 1."""
    from scipy.special import ndtri

    z = float(ndtri((1 + CONFIDENCE) / 2))
    n = np.maximum(trials, 1e-9)
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    empty = np.asarray(trials) == 0
    low, high = np.where(empty, 0.0, center - half), np.where(empty, 1.0, center + half)
    return Estimate(share, np.maximum(low, 0.0), np.minimum(high, 1.0))


def bootstrap(
    statistic: Callable[[np.ndarray], float | np.ndarray], N: int, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """`statistic(weights_N)` for samples of N things with replacement (Efron 1979): how often each was drawn."""
    random = np.random.default_rng(seed)
    return np.array([statistic(random.multinomial(N, np.full(N, 1 / N))) for _ in range(draws)])


def bootstrap_estimate(
    statistic: Callable[[np.ndarray], float], N: int, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """A statistic of weights with the bootstrap's percentile interval; its value has all weights 1."""
    drawn = bootstrap(statistic, N, draws, seed)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(statistic(np.ones(N))), float(low), float(high))


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean: what Spearman's correlation (Spearman 1904) is Pearson's correlation of."""
    # As scipy.stats.rankdata, whose import alone takes a second.
    _, place_N, count_K = np.unique(values_N, return_inverse=True, return_counts=True)
    last_K = np.cumsum(count_K)
    return (last_K - (count_K - 1) / 2)[place_N.ravel()]


def pair_ranks(matrix_NN: np.ndarray) -> np.ndarray:
    """A symmetric matrix with every pair i < j replaced by its rank among all pairs; the diagonal is 0."""
    upper = np.triu_indices(len(matrix_NN), 1)
    out_NN = np.zeros(matrix_NN.shape)
    out_NN[upper] = ranks(matrix_NN[upper])
    return out_NN + out_NN.T


def pair_correlation(a_NN: np.ndarray, b_NN: np.ndarray, weights_N: np.ndarray | None = None) -> float:
    """Pearson's correlation over pairs i != j of two symmetric matrices, a pair weighing weights_i x weights_j."""
    weights_N = np.ones(len(a_NN)) if weights_N is None else weights_N
    return float(pair_correlations(a_NN, b_NN, weights_N[None])[0])


def pair_correlations(a_NN: np.ndarray, b_NN: np.ndarray, weights_XN: np.ndarray) -> np.ndarray:
    """`pair_correlation` for X rows of weights, (X,), at the price of five matrix products."""
    off_NN = 1.0 - np.eye(len(a_NN))
    w_XN = np.asarray(weights_XN, np.float64)
    total_X = np.square(w_XN.sum(1)) - np.square(w_XN).sum(1)
    # Centered as they stand, so that little is lost where the squares of the means are taken away.
    a_NN, b_NN = ((x_NN - (x_NN * off_NN).sum() / off_NN.sum()) * off_NN for x_NN in (a_NN, b_NN))

    def mean(x_NN: np.ndarray) -> np.ndarray:
        return ((w_XN @ x_NN) * w_XN).sum(1) / total_X

    a_X, b_X = mean(a_NN), mean(b_NN)
    variances_X = (mean(a_NN * a_NN) - a_X * a_X) * (mean(b_NN * b_NN) - b_X * b_X)
    return (mean(a_NN * b_NN) - a_X * b_X) / np.sqrt(np.maximum(variances_X, 1e-300))


def partial_correlation(ab: float, ac: float, bc: float) -> float:
    """Of a and b with c held fixed, from their three correlations."""
    return (ab - ac * bc) / math.sqrt(max((1 - ac * ac) * (1 - bc * bc), 1e-12))


def mantel(a_NN: np.ndarray, b_NN: np.ndarray, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of Mantel's permutation test (Mantel 1967) that two symmetric matrices are unrelated.

    Pairs that share a thing are not independent, so things are shuffled, not pairs. At least 1 / (draws + 1).
    """
    random = np.random.default_rng(seed)
    N = len(a_NN)
    off_NN = 1.0 - np.eye(N)
    a_NN, b_NN = ((x_NN - (x_NN * off_NN).sum() / off_NN.sum()) * off_NN for x_NN in (a_NN, b_NN))
    observed = abs(np.vdot(a_NN, b_NN))
    orders = (random.permutation(N) for _ in range(draws))
    as_far = sum(abs(np.vdot(a_NN[np.ix_(order, order)], b_NN)) >= observed * (1 - 1e-12) for order in orders)
    return (1 + int(as_far)) / (1 + draws)


def monotone(values: Sequence[float]) -> Estimate:
    """Spearman's correlation of a sequence with its order, with the interval of Fisher's z (Fisher 1915)."""
    N = len(values)
    if N < 4:
        return Estimate(math.nan, -1.0, 1.0)
    rho = float(np.corrcoef(ranks(np.asarray(values)), np.arange(N))[0, 1])
    z, half = math.atanh(max(min(rho, 1 - 1e-12), -1 + 1e-12)), 1.96 / math.sqrt(N - 3)
    return Estimate(rho, math.tanh(z - half), math.tanh(z + half))
