"""Batches of rows of like length, padded to a few widths, with about the same number of tokens each.

A row is a pair or an example. A batch has R rows of at most W tokens a side; R x W is at most the token budget. W is
one of a few widths, so few programs are compiled. Widths and R are the same for every seed and epoch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from zerotollm.data.batches.windows import STEPS, Batch
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.errors import UsageError

MULTIPLE = 8  # widths, and large numbers of rows, are multiples of this, which suits matrix units

MakeBatch = Callable[[np.ndarray, int, int], Batch]
"""(numbers of the rows, rows of the batch with padding, width) -> batch"""


@dataclass(frozen=True)
class Bucket:
    width: int
    rows: int


@dataclass(frozen=True)
class BucketPlan:
    """The assignment of a split's rows to buckets."""

    buckets: tuple[Bucket, ...]  # from narrow to wide
    members: tuple[np.ndarray, ...]  # numbers of the rows in each bucket
    too_long: int  # rows left out, as a side has more tokens than `context`

    @property
    def used(self) -> np.ndarray:
        """Numbers of all rows in a bucket."""
        return np.concatenate(self.members)

    @cached_property
    def epoch_sizes(self) -> list[list[int]]:
        """Rows in each batch of an epoch, per bucket. Rows that do not fill a batch move to the next wider bucket."""
        sizes, left = [], 0
        for bucket, members in zip(self.buckets, self.members, strict=True):
            full, left = divmod(left + len(members), bucket.rows)
            sizes.append([bucket.rows] * full)
        sizes[-1] += [left] if left else []
        return sizes

    @cached_property
    def num_batches(self) -> int:
        return sum(map(len, self.epoch_sizes))


def plan_buckets(side_lengths: np.ndarray, *, context: int, batch_size: int, buckets: int) -> BucketPlan:
    """Return at most `buckets` widths with the least padding, and rows for `batch_size` x `context` tokens.

    `side_lengths` are the tokens of each row's sides, [rows, sides]. `Placement.rows` adds rows of padding for devices.
    """
    fitting_M = np.flatnonzero((side_lengths <= context).all(axis=1))
    longest_M = side_lengths[fitting_M].max(axis=1, initial=1)
    widths = _widths(longest_M, context, buckets)
    budget = batch_size * context

    def rows(width: int) -> int:
        # Rounding down fewer than 16 rows would waste too much of the budget.
        step = next((m for m in (MULTIPLE, 4) if budget // width >= 4 * m), 1)
        return budget // width // step * step

    members = np.split(
        fitting_M[np.argsort(longest_M, kind="stable")],
        np.searchsorted(np.sort(longest_M), widths[:-1], "right"),
    )
    shapes = tuple(Bucket(width, rows(width)) for width in widths)
    return BucketPlan(shapes, tuple(map(np.sort, members)), len(side_lengths) - len(fitting_M))


def first_rows(plan: BucketPlan, number: int) -> BucketPlan:
    """Return the plan for the first `number` rows alone, with the same buckets."""
    return replace(plan, members=tuple(members[members < number] for members in plan.members))


def _widths(longest_M: np.ndarray, context: int, buckets: int) -> list[int]:
    """Return at most `buckets` multiples of `MULTIPLE` (or the context) with the fewest padded tokens.

    By dynamic programming over the candidates: after k rounds, best[j] is the least padding of all rows up to
    candidate j with k + 1 widths, the last of which is candidate j.
    """
    rounded = {min(context, -(-int(n) // MULTIPLE) * MULTIPLE) for n in np.unique(longest_M)}
    candidates = sorted(rounded) or [context]
    rows_upto = np.searchsorted(np.sort(longest_M), candidates, "right")
    best = (rows_upto * np.array(candidates)).astype(np.int64)
    chosen = [[candidate] for candidate in candidates]
    for _ in range(buckets - 1):
        new, new_chosen = best.copy(), list(chosen)
        for j, width in enumerate(candidates):
            for i in range(j):
                total = best[i] + (rows_upto[j] - rows_upto[i]) * width
                if total < new[j]:
                    new[j], new_chosen[j] = total, [*chosen[i], width]
        best, chosen = new, new_chosen
    return chosen[-1]


def bucket_training_batches(
    plan: BucketPlan, make: MakeBatch, *, seed: int, process_index: int = 0, process_count: int = 1
) -> Sequence[Batch]:
    """Return endless batches; each depends on (seed, step) alone.

    An epoch has every row of the plan exactly once, in random order. Of a batch of R rows, process p of P makes rows
    p R / P to (p + 1) R / P - 1. Raises UsageError if the plan has no rows, or the processes do not divide a batch.
    """
    if not len(plan.used):
        raise UsageError("no training pair is left: raise data.context, or check the files")
    for bucket in plan.buckets:
        if bucket.rows % process_count or not 0 <= process_index < process_count:
            raise UsageError(
                f"{bucket.rows} rows of {bucket.width} tokens cannot be divided among {process_count} processes "
                f"(process {process_index}): choose another data.batch_size"
            )

    @lru_cache(maxsize=4)
    def epoch_batches(epoch: int) -> list[tuple[Bucket, np.ndarray]]:
        random = np.random.default_rng([seed, epoch])
        shuffled = [random.permutation(members) for members in plan.members]
        batches, left = [], np.zeros(0, np.int64)
        for bucket, members, sizes in zip(plan.buckets, shuffled, plan.epoch_sizes, strict=True):
            # Rows left over come first, so that they are rarely moved twice.
            pool = np.concatenate([left, members])
            *filled, left = np.split(pool, np.cumsum(sizes))
            batches += [(bucket, numbers) for numbers in filled]
        return [batches[i] for i in random.permutation(len(batches))]

    def make_step(step: int) -> Batch:
        epoch, index = divmod(step, plan.num_batches)
        bucket, numbers = epoch_batches(epoch)[index]
        rows = bucket.rows // process_count
        return make(numbers[process_index * rows : (process_index + 1) * rows], rows, bucket.width)

    return LazySequence(STEPS, make_step)


def bucket_evaluation_batches(plan: BucketPlan, make: MakeBatch) -> Sequence[Batch]:
    """Return every row of the plan once, from short to long; the last batch of each bucket is padded."""
    batches = [
        (bucket, members[start : start + bucket.rows])
        for bucket, members in zip(plan.buckets, plan.members, strict=True)
        for start in range(0, len(members), bucket.rows)
    ]

    def make_number(number: int) -> Batch:
        bucket, numbers = batches[number]
        return make(numbers, bucket.rows, bucket.width)

    return LazySequence(len(batches), make_number)
