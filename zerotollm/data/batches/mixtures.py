"""Batches combined from several sequences of batches."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from zerotollm.data.batches.windows import STEPS, Batch
from zerotollm.data.lazy_sequence import LazySequence


def replayed(new: Sequence[Batch], old: Sequence[Batch], share: Fraction) -> Sequence[Batch]:
    """Return the new batches, with a share of the steps evenly given to old ones; both keep their order."""

    def make(step: int) -> Batch:
        num_old = int(step * share)
        return old[num_old] if int((step + 1) * share) > num_old else new[step - num_old]

    return LazySequence(len(new), make)


def staged(first: Sequence[Batch], then: Sequence[Batch], steps: int) -> Sequence[Batch]:
    """Return `steps` batches of `first`, followed by `then` from its own step 0."""
    return LazySequence(len(then), lambda step: first[step] if step < steps else then[step - steps])


def interleaved(
    sources: Sequence[Callable[[np.ndarray], Batch]],
    shares: Sequence[Fraction],
    batch_size: int,
    rows: np.ndarray,
) -> Sequence[Batch]:
    """Return batches whose rows come from several sources, in the given shares.

    `sources` make batches of window numbers, and each source's windows come in order. `rows` are the rows of a batch to
    make, int64 [B]. The shares hold in every step, up to one window of each source, and row r of a step depends on the
    step alone, so resuming needs no saved state.
    """

    def make(step: int) -> Batch:
        places = [_place(step * batch_size + int(row), shares) for row in rows]
        number_B, window_B = (np.array(column) for column in zip(*places, strict=True))
        batches = {n: sources[n](window_B[number_B == n]) for n in sorted(set(number_B.tolist()))}
        first = next(iter(batches.values()))
        batch = {name: np.empty((len(rows), *array.shape[1:]), array.dtype) for name, array in first.items()}
        for number, part in batches.items():
            for name, array in part.items():
                batch[name][number_B == number] = array
        return batch

    return LazySequence(STEPS, make)


def _place(row: int, shares: Sequence[Fraction]) -> tuple[int, int]:
    """Return the source of a training row, counted over all steps, and which of that source's windows it is.

    The first source gets its share of all rows at even distances, the second its share of the rows that are left, and
    so on.
    """
    left = Fraction(1)
    for number, share in enumerate(shares[:-1]):
        part = share / left
        before = row * part.numerator // part.denominator
        if (row + 1) * part.numerator // part.denominator > before:
            return number, before
        row -= before
        left -= share
    return len(shares) - 1, row


def stacked(batches: Sequence[Sequence[Batch]]) -> Sequence[Batch]:
    """Return the batches of several seeds as one, with the seeds on a new first axis."""

    def make(step: int) -> Batch:
        of_seeds = [sequence[step] for sequence in batches]
        return {name: np.stack([batch[name] for batch in of_seeds]) for name in of_seeds[0]}

    return LazySequence(len(batches[0]), make)
