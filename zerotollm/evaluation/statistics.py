"""What a few runs say about a difference, and what they do not. No heavy imports before they are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference shown", "one seed"]
Outcome = Literal["shown", "opposite shown", "not shown"]
"""What an interval of a difference says: all of it above 0, all of it below 0, or neither."""


@dataclass(frozen=True)
class Comparison:
    """A variant against its base, seed by seed; of a loss, so that below 0 is better."""

    pairs: int
    """seeds that both were trained with"""
    difference: float
    """mean of variant - base"""
    low: float | None
    """where the interval begins; None with one pair, which says nothing of the noise"""
    high: float | None
    verdict: Verdict
    """better or worse only where the whole interval is below or above 0"""


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; the sum is exact."""
    return math.fsum(values) / len(values)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Of the sample: with n - 1; None of a single value."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def paired_difference(base: Sequence[float], variant: Sequence[float]) -> Comparison:
    """Mean of variant - base over pairs in the same order, with Student's 95 % interval (Student 1908).

    Pairs share a seed, so what the seed does to both drops out. The interval assumes that differences are
    normal. Raises ValueError where there is no pair or the lengths differ.
    """
    differences = [right - left for left, right in zip(base, variant, strict=True)]
    if not differences:
        raise ValueError("no pair to compare")
    pairs, center, deviation = len(differences), mean(differences), standard_deviation(differences)
    if deviation is None:
        return Comparison(pairs, center, None, None, "one seed")
    from scipy.special import stdtrit

    half = float(stdtrit(pairs - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(pairs)
    low, high = center - half, center + half
    verdict: Verdict = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
    return Comparison(pairs, center, low, high, verdict)


def student_p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's t test that the mean of independent differences is 0 (Student 1908).

    Fewer than two differences show nothing: 1. Equal differences that are not 0: 0.
    """
    if len(differences) < 2:
        return 1.0
    return min(1.0, 2 * _upper_tail(abs(mean(differences)), differences))


def equivalence_p_value(differences: Sequence[float], margin: float) -> float:
    """Return the p-value of two one-sided t tests that the mean difference is within +-margin (Schuirmann 1987).

    A p-value of at most 0.05 shows that no difference larger than `margin` exists. Fewer than two differences show
    nothing: 1.
    """
    if len(differences) < 2:
        return 1.0
    center = mean(differences)
    return max(_upper_tail(margin - center, differences), _upper_tail(margin + center, differences))


def _upper_tail(distance: float, differences: Sequence[float]) -> float:
    """The probability that Student's t exceeds distance / standard error of the mean difference."""
    from scipy.special import stdtr

    error = (standard_deviation(differences) or 0.0) / math.sqrt(len(differences))
    if error == 0.0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stdtr(len(differences) - 1, -distance / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many were looked at, in the order given (Holm 1979).

    Rejecting every hypothesis whose adjusted p-value is at most 0.05 keeps the probability of any false rejection
    among all of them at 5 %, whatever the dependence between them.
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
