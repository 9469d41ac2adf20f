"""Batches of examples: only the learned tokens have weight.

A batch is a dict of arrays, for R examples of at most W tokens:

inputs    int32   [R, W]  the example without its last token; pad on the right
targets   int32   [R, W]  the example without its first token; 0 where it is not learned
weights   float32 [R, W]  1 where the prediction counts
"""

import numpy as np

from zerotollm.data.batches.windows import Batch
from zerotollm.data.tokens.examples import TokenizedExamples


def example_batch(examples: TokenizedExamples, numbers: np.ndarray, rows: int, width: int) -> Batch:
    """Return the examples of these numbers, and below them padding up to `rows`."""
    starts_R, lengths_R = examples.starts_E[numbers], examples.side_lengths[numbers, 0]
    last_R = np.append(examples.starts_E[1:], len(examples.tokens_N))[numbers] - 1
    column_W = np.arange(width)
    inside_RW = column_W < lengths_R[:, None]
    # The last input is followed by the last token, even if the text in between was cut.
    next_RW = np.where(column_W == lengths_R[:, None] - 1, last_R[:, None], starts_R[:, None] + column_W + 1)
    learned_RW = inside_RW & (examples.learned_N.take(next_RW, mode="clip") > 0)
    tokens_RW = examples.tokens_N.take(starts_R[:, None] + column_W, mode="clip")
    batch = {
        "inputs": np.full((rows, width), examples.special.pad, np.int32),
        "targets": np.zeros((rows, width), np.int32),
        "weights": np.zeros((rows, width), np.float32),
    }
    batch["inputs"][: len(numbers)] = np.where(inside_RW, tokens_RW, examples.special.pad)
    batch["targets"][: len(numbers)] = np.where(learned_RW, examples.tokens_N.take(next_RW, mode="clip"), 0)
    batch["weights"][: len(numbers)] = learned_RW
    return batch
