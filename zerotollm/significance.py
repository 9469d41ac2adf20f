"""What a few runs say about a difference, and what they do not. No heavy imports before they are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95

Verdict = Literal["better", "worse", "no difference that matters", "no difference shown", "one seed"]
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
    """lower end of this comparison's own 95 % interval; None with one pair, which says nothing of the noise"""
    high: float | None
    p_value: float
    """of no difference, adjusted for all comparisons made together"""
    equivalence_p_value: float
    """of a difference as large as the margin, adjusted likewise"""
    verdict: Verdict


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; the sum is exact."""
    return math.fsum(values) / len(values)


def standard_deviation(values: Sequence[float]) -> float | None:
    """Of the sample: with n - 1; None of a single value."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def compare_all(rows: Sequence[Sequence[float]], margin: float) -> list[Comparison]:
    """Return a comparison for each row of differences (variant - base, one a seed), with verdicts corrected for all.

    What a seed does to both drops out of its difference; differences are assumed to be normal. An interval is Student's
    95 % interval of its row alone (Student 1908). The probability that any row is falsely called better or worse is at
    most 5 % (Holm 1979), and so is the probability that any row with "no difference that matters" truly differs by
    `margin` or more (two one-sided tests, Schuirmann 1987, and Holm). This verdict goes before the other two, as a sure
    difference may be too small to matter. Rows of one pair are not tested. Raises ValueError where a row is empty.
    """
    if not all(rows):
        raise ValueError("no pair to compare")
    from scipy.special import stdtrit

    tested = [row for row in rows if len(row) > 1]
    adjusted = zip(
        holm([student_p_value(row) for row in tested]),
        holm([equivalence_p_value(row, margin) for row in tested]),
        strict=True,
    )
    compared = []
    for row in rows:
        pairs, center, deviation = len(row), mean(row), standard_deviation(row)
        if deviation is None:
            compared.append(Comparison(pairs, center, None, None, 1.0, 1.0, "one seed"))
            continue
        half = float(stdtrit(pairs - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(pairs)
        p_value, equivalence = next(adjusted)
        verdict: Verdict = "no difference that matters"
        if equivalence > 1 - CONFIDENCE:
            side = outcome(center, p_value)
            verdict = {"shown": "worse", "opposite shown": "better", "not shown": "no difference shown"}[side]
        compared.append(
            Comparison(pairs, center, center - half, center + half, p_value, equivalence, verdict)
        )
    return compared


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
