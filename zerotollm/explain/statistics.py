"""Intervals and tests, so that no sentence claims more than its numbers show."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from zerotollm.significance import Outcome

CONFIDENCE = 0.95
NEGLIGIBLE = 0.01
"""Nats a token below which a difference is not told as an effect, however surely it is not 0."""
DRAWS = 200
"""Bootstrap samples and permutations, where nothing else is said: p-values come in steps of 1/201."""


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


UNKNOWN = Estimate(math.nan, -math.inf, math.inf)
"""What nobody measured."""


def mean_estimate(values_N: np.ndarray, looked_at: int = 1) -> Estimate:
    """Return the mean over the first axis with Student's interval (Student 1908); of arrays, an Estimate of arrays.

    Values must be independent: give one a window or a text, not one a token. A single value has an endless interval.
    With `looked_at` comparisons, all their intervals together hold the truth with 95 % (Bonferroni).
    """
    values_N = np.asarray(values_N, np.float64)
    N = len(values_N)
    center = values_N.mean(0)
    if N < 2:
        return Estimate(center, center - math.inf, center + math.inf)
    half = student_quantile(N - 1, looked_at) * values_N.std(0, ddof=1) / math.sqrt(N)
    return Estimate(center, center - half, center + half)


def student_quantile(freedom: float, looked_at: int) -> float:
    """Student's t that two-sided intervals at `CONFIDENCE` reach to, Bonferroni over `looked_at`."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * looked_at)))


def difference_estimate(a_N: np.ndarray, b_M: np.ndarray, looked_at: int = 1) -> Estimate:
    """Return mean(a) - mean(b) of independent samples with Welch's interval (Welch 1947); `looked_at` as above."""
    a_N, b_M = np.asarray(a_N, np.float64), np.asarray(b_M, np.float64)
    center = float(a_N.mean() - b_M.mean())
    if min(len(a_N), len(b_M)) < 2:
        return Estimate(center, -math.inf, math.inf)
    of_a, of_b = a_N.var(ddof=1) / len(a_N), b_M.var(ddof=1) / len(b_M)
    if of_a + of_b == 0:
        return Estimate(center, center, center)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a_N) - 1) + of_b**2 / (len(b_M) - 1))
    half = student_quantile(freedom, looked_at) * math.sqrt(of_a + of_b)
    return Estimate(center, center - half, center + half)


def beyond_null(value: float, null_K: np.ndarray, looked_at: int = 1) -> Estimate:
    """Return a value minus the mean of K draws of a null model, with Student's prediction interval.

    The interval holds 0 with 95 % where the value is one more draw of the null model. Fewer than two draws give an
    endless one. Values that are all equal show nothing but equality.
    """
    null_K = np.asarray(null_K, np.float64)
    K = len(null_K)
    if K < 2:
        return Estimate(value - float(null_K.mean()) if K else math.nan, -math.inf, math.inf)
    difference = float(value - null_K.mean())
    half = student_quantile(K - 1, looked_at) * float(null_K.std(ddof=1)) * math.sqrt(1 + 1 / K)
    return Estimate(difference, difference - half, difference + half)


def outcome_of(difference: Estimate, margin: float = 0.0) -> Outcome:
    """Return what the interval of a difference says: shown (all above the margin), opposite shown (all below minus
    the margin), not shown."""
    if difference.low > margin:
        return "shown"
    return "opposite shown" if difference.high < -margin else "not shown"


def verdict(difference: Estimate, shown: str, opposite: str, otherwise: str, margin: float = 0.0) -> str:
    """Return the text of the outcome of a difference."""
    return {"shown": shown, "opposite shown": opposite, "not shown": otherwise}[
        outcome_of(difference, margin)
    ]


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
    # Of ranks the variance is 1.06 times as large (Fieller, Hartley and Pearson 1957).
    z, half = math.atanh(max(min(rho, 1 - 1e-12), -1 + 1e-12)), 1.96 * math.sqrt(1.06 / (N - 3))
    return Estimate(rho, math.tanh(z - half), math.tanh(z + half))
