"""What a few runs say about a difference, and what they do not. No heavy imports before they are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference shown", "one seed"]


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
