"""Batches combined from several sequences of batches."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from zerotollm.data.batches.windows import Batch
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


def stacked(batches: Sequence[Sequence[Batch]]) -> Sequence[Batch]:
    """Return the batches of several seeds as one, with the seeds on a new first axis."""

    def make(step: int) -> Batch:
        of_seeds = [sequence[step] for sequence in batches]
        return {name: np.stack([batch[name] for batch in of_seeds]) for name in of_seeds[0]}

    return LazySequence(len(batches[0]), make)
