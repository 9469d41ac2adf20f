"""Pairs -> batches of about as many tokens each, pairs of like length together: `batch = dataset[step]`.

A batch is a dict of arrays, R pairs of at most W tokens a side, padded on the right:

sources   int32   [R, W]  the source, then eos
inputs    int32   [R, W]  bos, then the target
targets   int32   [R, W]  the target, then eos: what is to be predicted at each position
weights   float32 [R, W]  1 where the prediction counts, 0 at padding

W is one of a few widths, so that few programs are compiled, and R x W is at most the budget of tokens: rows of short
pairs are many, of long ones few. Both are the same for every seed and epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from zerotollm.data.batches.windows import STEPS, Batch
from zerotollm.data.tokens.pairs import TokenizedPairs
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import UsageError

if TYPE_CHECKING:
    import grain

MULTIPLE = 8
"""Widths, and rows where there are many, are multiples of this: what matrix units like."""


class Rows(Protocol):
    """What goes into batches: pairs, or any other texts of known lengths."""

    @property
    def side_lengths(self) -> np.ndarray:
        """Tokens of each side; int64 [rows, sides]."""

    def no_longer_than(self, length: int) -> np.ndarray:
        """Numbers of the rows all sides of which have at most so many tokens."""

    def __len__(self) -> int: ...


Make = Callable[[Any, np.ndarray, int, int], Batch]
"""(all rows, numbers of some, rows of the batch, its width) -> the batch."""


@dataclass(frozen=True)
class Bucket:
    """Pairs that are padded to one width."""

    width: int
    rows: int
    """pairs in a batch"""


@dataclass(frozen=True)
class Plan:
    """How the pairs of a split go into batches."""

    buckets: tuple[Bucket, ...]
    """from narrow to wide"""
    members: tuple[np.ndarray, ...]
    """numbers of the pairs of each bucket"""
    too_long: int
    """pairs left out: a side has more tokens than `context`"""

    @cached_property
    def batches(self) -> int:
        """In an epoch."""
        return sum(len(full) for full in _filled(self, [len(members) for members in self.members])[0])


def plan(pairs: Rows, *, context: int, batch_size: int, buckets: int) -> Plan:
    """At most `buckets` widths that waste the least padding, and rows for a budget of `batch_size` x `context` tokens.

    Neither depends on how a batch is computed: for micro-batches and devices `Placement.rows` adds rows of padding.
    """
    fitting_M = pairs.no_longer_than(context)
    longest_M = pairs.side_lengths[fitting_M].max(axis=1, initial=1)
    widths = _widths(longest_M, context, buckets)
    budget = batch_size * context

    def rows(width: int) -> int:
        # Fewer than 16 rows are not rounded down: they would lose too many.
        step = next((m for m in (MULTIPLE, 4) if budget // width >= 4 * m), 1)
        return budget // width // step * step

    members = np.split(
        fitting_M[np.argsort(longest_M, kind="stable")],
        np.searchsorted(np.sort(longest_M), widths[:-1], "right"),
    )
    sized = tuple(Bucket(width, rows(width)) for width in widths)
    return Plan(sized, tuple(np.sort(part) for part in members), len(pairs) - len(fitting_M))


def first_pairs(plan: Plan, number: int) -> Plan:
    """The same widths and rows for the first so many pairs alone."""
    return replace(plan, members=tuple(members[members < number] for members in plan.members))


def _widths(longest_M: np.ndarray, context: int, buckets: int) -> list[int]:
    """At most `buckets` multiples of `MULTIPLE` (the last may be the context itself) with the fewest padded tokens.

    By dynamic programming over the candidates: best[k][j] is the least padding of all pairs up to candidate j with k
    widths, the last of which is j.
    """
    candidates = sorted({min(context, -(-int(n) // MULTIPLE) * MULTIPLE) for n in np.unique(longest_M)}) or [
        context
    ]
    upto = np.searchsorted(np.sort(longest_M), candidates, "right")
    cost = upto * np.array(candidates)
    best, chosen = cost.astype(np.int64), [[candidate] for candidate in candidates]
    for _ in range(buckets - 1):
        new, new_chosen = best.copy(), list(chosen)
        for j, width in enumerate(candidates):
            for i in range(j):
                total = best[i] + (upto[j] - upto[i]) * width
                if total < new[j]:
                    new[j], new_chosen[j] = total, [*chosen[i], width]
        best, chosen = new, new_chosen
    return chosen[-1]


def pair_training_batches(
    pairs: Rows,
    plan: Plan,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    make: Make | None = None,
) -> grain.MapDataset:
    """Batches without end, for any step >= 0; each depends on (seed, step) and nothing else. `make` makes them, of
    pairs `make_batch`.

    An epoch has every pair of the plan exactly once, in an order of its own. What does not fill a batch of its bucket
    goes into the next wider one; only the last batch of the widest may have rows of padding. Process p of P makes
    rows p R / P to (p + 1) R / P - 1 of every batch. Raises UsageError where the split has no pair that fits, or
    where the processes do not divide the rows.
    """
    import grain

    if not sum(map(len, plan.members)):
        raise UsageError("no training pair is left: raise data.context, or look at the files")
    for bucket in plan.buckets:
        if bucket.rows % process_count or not 0 <= process_index < process_count:
            raise UsageError(
                f"{bucket.rows} pairs of {bucket.width} tokens do not go to {process_count} processes in equal "
                f"parts (process {process_index}): choose data.batch_size so that they do"
            )
    return grain.MapDataset.source(
        _TrainingBatches(pairs, plan, seed, process_index, process_count, make or make_batch)
    )


def pair_evaluation_batches(pairs: Rows, plan: Plan, make: Make | None = None) -> grain.MapDataset:
    """Every pair of the plan once, from short to long; the last batch of a bucket is filled with rows of padding."""
    import grain

    return grain.MapDataset.source(_EvaluationBatches(pairs, plan, make or make_batch))


@dataclass(frozen=True)
class _TrainingBatches:
    pairs: Rows
    plan: Plan
    seed: int
    process_index: int
    process_count: int
    make: Make

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(int(step), self.plan.batches)
        bucket, numbers = _epoch(self, epoch)[place]
        share = bucket.rows // self.process_count
        mine = numbers[self.process_index * share : (self.process_index + 1) * share]
        return self.make(self.pairs, mine, share, bucket.width)

    def __hash__(self) -> int:  # for the cache of epochs: the arrays have none
        return hash((id(self.pairs), id(self.plan), self.seed))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _TrainingBatches)
            and self.pairs is other.pairs
            and self.plan is other.plan
            and self.seed == other.seed
        )


@lru_cache(maxsize=4)
def _epoch(dataset: _TrainingBatches, epoch: int) -> list[tuple[Bucket, np.ndarray]]:
    """The batches of an epoch in order. Kept for the epochs that batches are being made from."""
    random = np.random.default_rng([dataset.seed, epoch])
    plan = dataset.plan
    shuffled = [random.permutation(members) for members in plan.members]
    filled, _ = _filled(plan, [len(members) for members in shuffled])
    batches, left = [], np.zeros(0, np.int64)
    for bucket, members, sizes in zip(plan.buckets, shuffled, filled, strict=True):
        # Those left over come first, so that none is passed on twice while there are others.
        pool = np.concatenate([left, members])
        for size in sizes:
            batches.append((bucket, pool[:size]))
            pool = pool[size:]
        left = pool
    return [batches[i] for i in random.permutation(len(batches))]


def _filled(plan: Plan, counts: list[int]) -> tuple[list[list[int]], int]:
    """Sizes of the batches of each bucket in an epoch; and the pairs in all."""
    sizes, left = [], 0
    for number, (bucket, count) in enumerate(zip(plan.buckets, counts, strict=True)):
        full, left = divmod(left + count, bucket.rows)
        last = [left] if left and number == len(counts) - 1 else []
        sizes.append([bucket.rows] * full + last)
    return sizes, sum(counts)


@dataclass(frozen=True)
class _EvaluationBatches:
    pairs: Rows
    plan: Plan
    make: Make

    @cached_property
    def _batches(self) -> list[tuple[Bucket, np.ndarray]]:
        return [
            (bucket, members[start : start + bucket.rows])
            for bucket, members in zip(self.plan.buckets, self.plan.members, strict=True)
            for start in range(0, len(members), bucket.rows)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        bucket, numbers = self._batches[number]
        return self.make(self.pairs, numbers, bucket.rows, bucket.width)


def make_batch(pairs: TokenizedPairs, numbers: np.ndarray, rows: int, width: int) -> Batch:
    """The pairs of these numbers, and below them rows of padding up to `rows`."""
    sources_RW, _ = _padded(pairs.sources, numbers, rows, width)
    targets_RW, weights_RW = _padded(pairs.targets, numbers, rows, width)
    pad, bos, eos = pairs.targets.special
    inputs_RW = np.where(weights_RW > 0, np.roll(targets_RW, 1, axis=1), pad)
    inputs_RW[:, 0] = np.where(weights_RW[:, 0] > 0, bos, pad)
    # A row of padding still needs something to look at.
    sources_RW[len(numbers) :, 0] = eos
    return {"sources": sources_RW, "inputs": inputs_RW, "targets": targets_RW, "weights": weights_RW}


def _padded(
    side: TokenizedSplit, numbers: np.ndarray, rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The texts, each followed by eos, and 1 where they are."""
    ends_D = np.append(side.document_starts_D[1:], len(side.tokens_N))
    start_R, end_R = side.document_starts_D[numbers] + 1, ends_D[numbers]  # without the bos that is stored
    index_RW = start_R[:, None] + np.arange(width)
    text_RW = side.tokens_N.take(index_RW, mode="clip").astype(np.int32)
    text_RW[index_RW == end_R[:, None]] = side.special.eos
    inside_RW = index_RW <= end_R[:, None]
    ids_RW = np.full((rows, width), side.special.pad, np.int32)
    weights_RW = np.zeros((rows, width), np.float32)
    ids_RW[: len(numbers)] = np.where(inside_RW, text_RW, side.special.pad)
    weights_RW[: len(numbers)] = inside_RW
    return ids_RW, weights_RW
