"""Paired comparisons over a few seeds: Student's t tests and intervals, corrected for several comparisons and looks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal, NamedTuple

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference that matters", "no difference shown", "one seed"]
Outcome = Literal["shown", "opposite shown", "not shown"]
"""Position of the interval of a difference: above 0, below 0, or across 0."""


@dataclass(frozen=True)
class Comparison:
    """A variant compared with its base over the same seeds, by a loss: a difference below 0 is better."""

    pairs: int
    """seeds that both were trained with"""
    difference: float
    """mean of variant - base"""
    low: float | None
    """lower end of the 95 % interval of this comparison alone; None with one pair"""
    high: float | None
    p_value: float
    """of no difference, adjusted for all comparisons made together"""
    equivalence_p_value: float
    """of a difference as large as the margin, adjusted likewise"""
    verdict: Verdict


class Looks(NamedTuple):
    """A group-sequential design: differences are tested after `first`, `first` + 1, ... and `last` seeds."""

    first: int
    last: int

    def share(self, seeds: int) -> float:
        """Return the share of the allowed 5 % that the look after `seeds` seeds may spend; all together spend 1.

        It is the increase of (seeds / last)^2, a power spending function (Kim and DeMets 1987, Biometrika 74, equation
        2.3, with exponent 2): early looks stop for large differences only, and most is left for the last.
        """
        before = 0 if seeds == self.first else seeds - 1
        return (seeds**2 - before**2) / self.last**2


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1); None of fewer than two values.

    `statistics.stdev` would round the last bit differently, and fails on NaN.
    """
    if len(values) < 2:
        return None
    center = fmean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def compare_all(
    rows: Sequence[Sequence[float]], margin: float, looks: Looks | None = None
) -> list[Comparison]:
    """Return a comparison for each row of differences (variant - base, one a seed), with corrected verdicts.

    Differences are assumed to be normal. An interval is Student's 95 % interval of its row alone (Student 1908).
    The probability that any row is falsely called better or worse is at most 5 % (Holm 1979). The same bound holds for
    "no difference that matters", of rows that truly differ by `margin` or more (two one-sided tests, Schuirmann 1987,
    and Holm). This verdict goes before the other two, because a sure difference may be too small to matter.
    Rows of one pair are not tested. Raises ValueError where a row is empty.

    With `looks`, a row may have been tested at every look until now, and given more seeds as long as nothing was shown.
    Its p-value is the smallest of those at its looks, each divided by the look's share of the 5 % (`Looks.share`).
    By Bonferroni's inequality the bounds hold all the same.
    """
    if not all(rows):
        raise ValueError("no pair to compare")
    tested = [row for row in rows if len(row) > 1]
    adjusted = zip(
        holm([over_looks(student_p_value, row, looks) for row in tested]),
        holm([over_looks(partial(equivalence_p_value, margin=margin), row, looks) for row in tested]),
        strict=True,
    )
    comparisons = []
    for row in rows:
        pairs, center, deviation = len(row), fmean(row), standard_deviation(row)
        if deviation is None:
            comparisons.append(Comparison(pairs, center, None, None, 1.0, 1.0, "one seed"))
            continue
        half = float(stdtrit(pairs - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(pairs)
        p_value, equivalence = next(adjusted)
        verdicts: dict[Outcome, Verdict] = {
            "shown": "worse",
            "opposite shown": "better",
            "not shown": "no difference shown",
        }
        verdict = verdicts[outcome(center, p_value)]
        if equivalence <= 1 - CONFIDENCE:
            verdict = "no difference that matters"
        comparisons.append(
            Comparison(pairs, center, center - half, center + half, p_value, equivalence, verdict)
        )
    return comparisons


def over_looks(
    p_value: Callable[[Sequence[float]], float], differences: Sequence[float], looks: Looks | None
) -> float:
    """Return a p-value of one row that was tested after each of `looks`, as far as it has seeds; at most 1."""
    if looks is None:
        return p_value(differences)
    reached = range(looks.first, min(len(differences), looks.last) + 1)
    return min([1.0, *(p_value(differences[:seeds]) / looks.share(seeds) for seeds in reached)])


def student_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test that the mean of independent differences is 0 (Student 1908).

    Return 1 for fewer than two differences, and 0 for equal differences that are not 0.
    """
    if len(differences) < 2:
        return 1.0
    return min(1.0, 2 * _upper_tail(abs(fmean(differences)), differences))


def equivalence_p_value(differences: Sequence[float], margin: float) -> float:
    """Return the p-value of two one-sided t tests that the mean difference is within +-margin (Schuirmann 1987).

    A p-value of at most 0.05 shows that no difference larger than `margin` exists. Return 1 for fewer than two
    differences.
    """
    if len(differences) < 2:
        return 1.0
    center = fmean(differences)
    return max(_upper_tail(margin - center, differences), _upper_tail(margin + center, differences))


def upper_p_value(values: Sequence[float]) -> float:
    """Return the one-sided p-value of Student's t test of independent values whose mean is at most 0 (Student 1908).

    Return 1 for fewer than two values.
    """
    return 1.0 if len(values) < 2 else _upper_tail(fmean(values), values)


def shorter_p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the one-sided p-value that the mean of `values` is not below that of `others`: Welch's t test (1947).

    Return 1 where one of them has fewer than two values.
    """
    if min(len(values), len(others)) < 2:
        return 1.0
    first, second = (((standard_deviation(v) or 0.0) ** 2 / len(v), len(v) - 1) for v in (values, others))
    error = math.sqrt(first[0] + second[0])
    difference = fmean(values) - fmean(others)
    if error == 0.0:
        return float(difference >= 0)
    freedom = error**4 / sum(variance**2 / n for variance, n in (first, second))
    return float(stdtr(freedom, difference / error))


def _upper_tail(distance: float, differences: Sequence[float]) -> float:
    """Return the probability that Student's t exceeds distance / standard error of the mean difference."""
    error = (standard_deviation(differences) or 0.0) / math.sqrt(len(differences))
    if error == 0.0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stdtr(len(differences) - 1, -distance / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests, in the order given (Holm 1979).

    Rejecting every hypothesis whose adjusted p-value is at most 0.05 keeps the probability of any false rejection at
    5 %, whatever the dependence between the tests.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def outcome(difference: float, adjusted_p_value: float) -> Outcome:
    """Return whether a difference above 0 is shown, the opposite is shown, or neither, at 5 %."""
    if adjusted_p_value > 1 - CONFIDENCE or difference == 0:
        return "not shown"
    return "shown" if difference > 0 else "opposite shown"
