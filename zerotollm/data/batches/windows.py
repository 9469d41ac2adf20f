"""Batches of windows of text.

A batch is a dict of arrays [B, T], B windows of T tokens (T is the context):

inputs    int32    tokens i to i + T - 1 of the split
targets   int32    tokens i + 1 to i + T: the token to predict at each position
weights   float32  1 where the prediction counts, 0 at padding
segments  int32    number of the document within the window, from 1. Document masks compare these

Windows cross document boundaries. The target of a document's last token is the bos of the next document.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import UsageError

Batch = dict[str, np.ndarray]

STEPS = 2**40  # length of training data, which has no end: a sequence needs a length


def training_batches(
    split: TokenizedSplit,
    *,
    context: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Sequence[Batch]:
    """Return endless batches; each depends on (seed, step) alone, so resuming needs no saved state.

    Row b of step s is window s B + b of `training_windows`. Of the `batch_size` rows B, process p of P makes rows
    p B / P to (p + 1) B / P - 1. Raises UsageError if the split is too short, or the processes do not divide the batch.
    """
    rows = rows_of_process(batch_size, process_index, process_count)
    windows = training_windows(split, context=context, seed=seed)
    # One batch at a time: row by row, Python would take most of the time.
    return LazySequence(STEPS, lambda step: windows(step * batch_size + rows))


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """Return the rows of a batch that a process makes. Raises UsageError if the processes do not divide the batch."""
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise UsageError(
            f"data.batch_size {batch_size} cannot be divided among {process_count} processes "
            f"(process {process_index}): make it a multiple of {process_count}"
        )
    rows = batch_size // process_count
    return process_index * rows + np.arange(rows)


def training_windows(split: TokenizedSplit, *, context: int, seed: int) -> Callable[[np.ndarray], Batch]:
    """Return a function from window numbers, int64 [B] and increasing, to a batch.

    Each epoch divides the tokens into adjacent windows from a random phase on, in random order (`epoch_windows`), and
    omits less than two windows of tokens. Raises UsageError if the split is too short.
    """
    num_tokens = len(split.tokens_N)
    if num_tokens <= context:
        raise UsageError(
            f"the training split is {num_tokens:,} tokens long, and a window of data.context {context:,} "
            f"needs {context + 1:,}: give more text or lower data.context"
        )
    windows_of = lru_cache(maxsize=4)(lambda epoch: epoch_windows(num_tokens, context, seed, epoch))

    def make(window_B: np.ndarray) -> Batch:
        epoch_B, index_B = np.divmod(window_B, num_windows(num_tokens, context))
        start_B = np.empty(len(window_B), np.int64)
        for epoch in range(epoch_B[0], epoch_B[-1] + 1):
            start_B[epoch_B == epoch] = windows_of(epoch)[index_B[epoch_B == epoch]]
        return _batch(split, start_B, context)

    return make


def evaluation_batches(split: TokenizedSplit, *, context: int, batch_size: int) -> Sequence[Batch]:
    """Return a split in order as adjacent windows: every token but the first is a target once. Padding has weight 0."""
    num_targets = len(split.tokens_N) - 1
    if num_targets < 1:
        raise UsageError("the split to evaluate holds no text: raise data.validation_fraction")

    def make(number: int) -> Batch:
        return _batch(split, (number * batch_size + np.arange(batch_size)) * context, context)

    return LazySequence(-(-num_targets // (context * batch_size)), make)


def num_windows(num_tokens: int, context: int) -> int:
    """Return the windows in an epoch. They leave at least context - 1 targets over, so that the phase can vary."""
    return max(1, (num_tokens - context) // context)


def epoch_windows(num_tokens: int, context: int, seed: int, epoch: int) -> np.ndarray:
    """Return the first token of each window of an epoch, in training order; int64 [windows]."""
    random, windows = np.random.default_rng([seed, epoch]), num_windows(num_tokens, context)
    phase = int(random.integers(num_tokens - windows * context))
    return phase + context * random.permutation(windows)


def _batch(split: TokenizedSplit, start_B: np.ndarray, context: int) -> Batch:
    tokens_N = split.tokens_N
    index_BW = start_B[:, None] + np.arange(context + 1)  # a window and the token after it
    window_BW = tokens_N.take(index_BW, mode="clip").astype(np.int32)
    beyond_BW = index_BW >= len(tokens_N)
    window_BW[beyond_BW] = split.special.pad
    inputs_BT, targets_BT = np.ascontiguousarray(window_BW[:, :-1]), np.ascontiguousarray(window_BW[:, 1:])
    bos_BT = inputs_BT == split.special.bos
    continued_B1 = ~bos_BT[:, :1]  # a window that begins inside a document counts that document too
    return {
        "inputs": inputs_BT,
        "targets": targets_BT,
        "weights": (~beyond_BW[:, 1:]).astype(np.float32),
        "segments": np.cumsum(bos_BT, axis=1, dtype=np.int32) + continued_B1,
    }
