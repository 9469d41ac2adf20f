"""Tokens -> batches: `batch = dataset[step]`, a pure function of the seed and the step.

A batch is a dict of arrays [B, T], B windows of T tokens (T is the context):

inputs    int32    tokens i to i + T - 1 of the split
targets   int32    tokens i + 1 to i + T: what is to be predicted at each position
weights   float32  1 where the prediction counts, 0 at padding
segments  int32    number of the document in the window, from 1; a document begins at its bos. Attention that
                   must not look into another document compares these

Windows run across documents; the target of a document's last token is the bos of the next, which so doubles
as the end of a document. The same batches come from `dataset.to_iter_dataset(grain.ReadOptions(...))`, which
makes them ahead in threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import UsageError

if TYPE_CHECKING:
    import grain

Batch = dict[str, np.ndarray]

STEPS = 2**40
"""Length of a dataset without end: grain wants a number."""


@dataclass(frozen=True)
class EpochLayout:
    """How one pass over the tokens is cut into windows: at phase, phase + T, phase + 2 T, ..."""

    windows: int
    """the same number in every epoch"""
    phase: int
    """tokens before the first window"""
    dropped_tokens: int
    """targets that no window of this epoch has, before the first window and after the last"""


def epoch_layout(split: TokenizedSplit, *, context: int, seed: int, epoch: int) -> EpochLayout:
    """How `training_batches` cuts an epoch, counted from 0. Raises UsageError as it does."""
    num_tokens = len(split.tokens_N)
    phase, order_W = _epoch(_num_windows(num_tokens, context), num_tokens, context, seed, epoch)
    return EpochLayout(len(order_W), phase, num_tokens - 1 - len(order_W) * context)


def training_batches(
    split: TokenizedSplit,
    *,
    context: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Batches without end, for any step >= 0; nothing needs to be saved to go on at a step.

    In every epoch the tokens are cut, from a random phase on, into windows side by side, which are put in
    random order; both depend on (seed, epoch) only. So a token is met at ever other places of a window, and
    none is left out in all epochs: an epoch drops less than two windows, before its first and after its last
    (`epoch_layout` counts). Nothing is dropped between epochs: a batch may begin in one and end in the next.

    Of the `batch_size` rows, process p of P makes rows p B / P to (p + 1) B / P - 1: put together, these are
    the batch of a single process. Raises UsageError where the split is shorter than a window and the token
    after it, and where the processes do not divide the batch.
    """
    import grain

    if batch_size % process_count or not 0 <= process_index < process_count:
        raise UsageError(
            f"data.batch_size {batch_size} does not go to {process_count} processes in equal parts "
            f"(process {process_index}): make it a multiple of {process_count}"
        )
    rows = batch_size // process_count
    _num_windows(len(split.tokens_N), context)
    return grain.MapDataset.source(
        _TrainingBatches(split, context, batch_size, seed, process_index * rows, rows)
    )


def evaluation_batches(split: TokenizedSplit, *, context: int, batch_size: int) -> grain.MapDataset:
    """The whole split in order, in windows side by side: every token but the first is a target once.

    All batches have one shape: the last window is filled up with pad, the last batch with rows of pad, and
    both have weight 0. Raises UsageError where the split has no token to predict.
    """
    import grain

    if len(split.tokens_N) < 2:
        raise UsageError("the split to evaluate holds no text: give it some with data.validation_fraction")
    return grain.MapDataset.source(_EvaluationBatches(split, context, batch_size))


@dataclass(frozen=True)
class Replayed:
    """Batches of a new text, a share of them replaced by those of an old one, evenly and each in its own order."""

    new: Sequence[Batch]
    old: Sequence[Batch]
    share: Fraction

    def __len__(self) -> int:
        return len(self.new)

    def __getitem__(self, step: int) -> Batch:
        before = int(step * self.share)
        return self.old[before] if int((step + 1) * self.share) > before else self.new[step - before]


@dataclass(frozen=True)
class Staged:
    """Batches of one kind in the first steps, then of another from its own beginning."""

    first: Sequence[Batch]
    then: Sequence[Batch]
    steps: int
    """of the first kind"""

    def __len__(self) -> int:
        return len(self.then)

    def __getitem__(self, step: int) -> Batch:
        return self.first[step] if step < self.steps else self.then[step - self.steps]


@dataclass(frozen=True)
class _TrainingBatches:
    """Makes whole batches at once: row by row, Python would take most of the time."""

    split: TokenizedSplit
    context: int
    batch_size: int
    seed: int
    first_row: int
    rows: int

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> Batch:
        num_tokens = len(self.split.tokens_N)
        windows = _num_windows(num_tokens, self.context)
        first = int(step) * self.batch_size + self.first_row
        epoch_B, place_B = np.divmod(first + np.arange(self.rows), windows)
        start_B = np.empty(self.rows, np.int64)
        for epoch in range(epoch_B[0], epoch_B[-1] + 1):
            phase, order_W = _epoch(windows, num_tokens, self.context, self.seed, epoch)
            here_B = epoch_B == epoch
            start_B[here_B] = phase + self.context * order_W[place_B[here_B]]
        return _batch(self.split, start_B, self.context)


@dataclass(frozen=True)
class _EvaluationBatches:
    """Window after window."""

    split: TokenizedSplit
    context: int
    batch_size: int

    def __len__(self) -> int:
        return -(-(len(self.split.tokens_N) - 1) // (self.context * self.batch_size))

    def __getitem__(self, number: int) -> Batch:
        row_B = int(number) * self.batch_size + np.arange(self.batch_size)
        return _batch(self.split, row_B * self.context, self.context)


def _num_windows(num_tokens: int, context: int) -> int:
    """Windows in an epoch. They leave at least context - 1 targets over, if there are that many, so that the
    phase is free. Raises UsageError where not one fits."""
    if num_tokens <= context:
        raise UsageError(
            f"the training split is {num_tokens:,} tokens long, and a window of data.context {context:,} "
            f"needs {context + 1:,}: give more text or lower data.context"
        )
    return max(1, (num_tokens - context) // context)


@lru_cache(maxsize=4)
def _epoch(windows: int, num_tokens: int, context: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """The phase and the order of the windows. Kept for the epochs that batches are being made from."""
    random = np.random.default_rng([seed, epoch])
    phase = int(random.integers(num_tokens - windows * context))
    return phase, random.permutation(windows)


def _batch(split: TokenizedSplit, start_B: np.ndarray, context: int) -> Batch:
    """The windows that begin at `start_B`. What lies beyond the last token is pad, and has weight 0."""
    tokens_N = split.tokens_N
    index_BW = start_B[:, None] + np.arange(context + 1)  # a window and the token after it
    window_BW = tokens_N.take(index_BW, mode="clip").astype(np.int32)
    beyond_BW = index_BW >= len(tokens_N)
    window_BW[beyond_BW] = split.special.pad
    inputs_BT, targets_BT = np.ascontiguousarray(window_BW[:, :-1]), np.ascontiguousarray(window_BW[:, 1:])
    bos_BT = inputs_BT == split.special.bos
    first_B1 = ~bos_BT[:, :1]  # a window that begins within a document counts that one too
    return {
        "inputs": inputs_BT,
        "targets": targets_BT,
        "weights": (~beyond_BW[:, 1:]).astype(np.float32),
        "segments": np.cumsum(bos_BT, axis=1, dtype=np.int32) + first_B1,
    }
