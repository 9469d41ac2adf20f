"""Estimates with 95 % intervals, bootstrap and permutation tests: no sentence claims more than its numbers show."""

import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from scipy.special import ndtri, stdtrit

from zerotollm.significance import Outcome

CONFIDENCE = 0.95
NEGLIGIBLE = 0.01
"""Nats per token: a smaller difference counts as no effect, even if it is certain."""
DRAWS = 200
"""Default number of bootstrap samples and of permutations; p-values are multiples of 1/201."""

T = TypeVar("T")


class Estimate(NamedTuple, Generic[T]):
    """A number, or an array of numbers, and the ends of its 95 % interval."""

    value: T
    low: T
    high: T

    def at(self: "Estimate[np.ndarray]", *index: int) -> "Estimate[float]":
        """Return one element of an estimate of arrays."""
        return Estimate(*(float(x[index]) for x in self))

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


UNKNOWN = Estimate(math.nan, -math.inf, math.inf)
"""The estimate of a quantity that was not measured."""


def mean_estimate(values_N: np.ndarray, comparisons: int = 1) -> Estimate:
    """Return the mean over the first axis with Student's interval (Student 1908), of the shape of the other axes.

    Values must be independent: pass one per window or text, not one per token. The interval of a single value is
    infinite. The intervals of that many `comparisons` all hold together with 95 % (Bonferroni).
    """
    values_N = np.asarray(values_N, np.float64)
    N = len(values_N)
    center = values_N.mean(0)
    if N < 2:
        return Estimate(center, center - math.inf, center + math.inf)
    half = student_quantile(N - 1, comparisons) * values_N.std(0, ddof=1) / math.sqrt(N)
    return Estimate(center, center - half, center + half)


def student_quantile(freedom: float, comparisons: int) -> float:
    """Return the quantile of Student's t for two-sided intervals at `CONFIDENCE`, Bonferroni over `comparisons`."""
    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * comparisons)))


def difference_estimate(a_N: np.ndarray, b_M: np.ndarray, comparisons: int = 1) -> Estimate[float]:
    """Return mean(a) - mean(b) of independent samples with Welch's interval (Welch 1947)."""
    a_N, b_M = np.asarray(a_N, np.float64), np.asarray(b_M, np.float64)
    center = float(a_N.mean() - b_M.mean())
    if min(len(a_N), len(b_M)) < 2:
        return Estimate(center, -math.inf, math.inf)
    error_a, error_b = a_N.var(ddof=1) / len(a_N), b_M.var(ddof=1) / len(b_M)
    if error_a + error_b == 0:
        return Estimate(center, center, center)
    freedom = (error_a + error_b) ** 2 / (error_a**2 / (len(a_N) - 1) + error_b**2 / (len(b_M) - 1))
    half = student_quantile(freedom, comparisons) * math.sqrt(error_a + error_b)
    return Estimate(center, center - half, center + half)


def beyond_null(value: float, null_K: np.ndarray, comparisons: int = 1) -> Estimate[float]:
    """Return a value minus the mean of K draws of a null model, with Student's prediction interval.

    The interval contains 0 with 95 % if the value is another draw of the null model. It is infinite for K < 2, and has
    no width if all draws are equal.
    """
    null_K = np.asarray(null_K, np.float64)
    K = len(null_K)
    if K < 2:
        return Estimate(value - float(null_K.mean()) if K else math.nan, -math.inf, math.inf)
    difference = float(value - null_K.mean())
    half = student_quantile(K - 1, comparisons) * float(null_K.std(ddof=1)) * math.sqrt(1 + 1 / K)
    return Estimate(difference, difference - half, difference + half)


def outcome_of(difference: Estimate[float], margin: float = 0.0) -> Outcome:
    """Return "shown" if the interval lies above `margin`, "opposite shown" if below -margin, else "not shown"."""
    if difference.low > margin:
        return "shown"
    return "opposite shown" if difference.high < -margin else "not shown"


def verdict(
    difference: Estimate[float], shown: str, opposite: str, otherwise: str, margin: float = 0.0
) -> str:
    """Return the text for the outcome of a difference."""
    texts: dict[Outcome, str] = {"shown": shown, "opposite shown": opposite, "not shown": otherwise}
    return texts[outcome_of(difference, margin)]


def share_estimate(hits: np.ndarray, trials: np.ndarray) -> Estimate[np.ndarray]:
    """Return hits / trials with Wilson's score interval (Wilson 1927), which is 0 to 1 without trials."""
    z = float(ndtri((1 + CONFIDENCE) / 2))
    n = np.maximum(trials, 1e-9)
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = np.where(trials == 0, 0.0, center - half), np.where(trials == 0, 1.0, center + half)
    return Estimate(share, np.maximum(low, 0.0), np.minimum(high, 1.0))


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], N: int) -> np.ndarray:
    """Return `statistic(weights_N)` for `DRAWS` samples of N items with replacement (Efron 1979), stacked.

    A weight is the number of times that the item was drawn.
    """
    random = np.random.default_rng(0)
    return np.array([statistic(random.multinomial(N, np.full(N, 1 / N))) for _ in range(DRAWS)])


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Return ranks from 1; ties share their mean rank. Spearman's correlation (1904) is Pearson's of these."""
    # The same as scipy.stats.rankdata, but importing scipy.stats takes a second.
    _, group_N, count_K = np.unique(values_N, return_inverse=True, return_counts=True)
    last_K = np.cumsum(count_K)
    return (last_K - (count_K - 1) / 2)[group_N.ravel()]


def pair_ranks(matrix_NN: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix with every pair i < j replaced by its rank among all pairs; the diagonal is 0."""
    upper = np.triu_indices(len(matrix_NN), 1)
    out_NN = np.zeros(matrix_NN.shape)
    out_NN[upper] = ranks(matrix_NN[upper])
    return out_NN + out_NN.T


def _centered_pairs(x_NN: np.ndarray) -> np.ndarray:
    """Subtract the mean over pairs i != j; the diagonal becomes 0."""
    off_NN = 1.0 - np.eye(len(x_NN))
    return (x_NN - (x_NN * off_NN).sum() / off_NN.sum()) * off_NN


def pair_correlations(a_NN: np.ndarray, b_NN: np.ndarray, weights_XN: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over pairs i != j of two symmetric matrices, for each of X rows of weights, (X,).

    A pair weighs weights_i x weights_j.
    """
    w_XN = np.asarray(weights_XN, np.float64)
    total_X = np.square(w_XN.sum(1)) - np.square(w_XN).sum(1)
    # Centering first loses less precision when the squared means are subtracted below.
    a_NN, b_NN = _centered_pairs(a_NN), _centered_pairs(b_NN)

    def mean(x_NN: np.ndarray) -> np.ndarray:
        return ((w_XN @ x_NN) * w_XN).sum(1) / total_X

    a_X, b_X = mean(a_NN), mean(b_NN)
    variances_X = (mean(a_NN * a_NN) - a_X * a_X) * (mean(b_NN * b_NN) - b_X * b_X)
    return (mean(a_NN * b_NN) - a_X * b_X) / np.sqrt(np.maximum(variances_X, 1e-300))


def partial_correlation(ab: float, ac: float, bc: float) -> float:
    """Return the correlation of a and b with c held fixed, from their three correlations."""
    return (ab - ac * bc) / math.sqrt(max((1 - ac * ac) * (1 - bc * bc), 1e-12))


def mantel(a_NN: np.ndarray, b_NN: np.ndarray, draws: int, seed: int) -> float:
    """Return the two-sided p-value of Mantel's test (1967) that two symmetric matrices are unrelated.

    It permutes items, not pairs, because pairs that share an item are dependent. The smallest p is 1 / (draws + 1).
    """
    random = np.random.default_rng(seed)
    a_NN, b_NN = _centered_pairs(a_NN), _centered_pairs(b_NN)
    observed = abs(np.vdot(a_NN, b_NN))
    orders = (random.permutation(len(a_NN)) for _ in range(draws))
    as_far = sum(abs(np.vdot(a_NN[np.ix_(order, order)], b_NN)) >= observed * (1 - 1e-12) for order in orders)
    return (1 + int(as_far)) / (1 + draws)


def monotone(values: Sequence[float] | np.ndarray) -> Estimate[float]:
    """Return Spearman's correlation of a sequence with its order, with the interval of Fisher's z (Fisher 1915)."""
    N = len(values)
    if N < 4:
        return Estimate(math.nan, -1.0, 1.0)
    rho = float(np.corrcoef(ranks(np.asarray(values)), np.arange(N))[0, 1])
    # For ranks the variance of z is 1.06 times as large (Fieller, Hartley and Pearson 1957).
    z, half = math.atanh(max(min(rho, 1 - 1e-12), -1 + 1e-12)), 1.96 * math.sqrt(1.06 / (N - 3))
    return Estimate(rho, math.tanh(z - half), math.tanh(z + half))
