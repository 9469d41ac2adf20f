"""Batches of translation pairs and of examples: R rows of at most W tokens a side, padded on the right.

sources   int32   [R, W]  of pairs: the source, then eos
inputs    int32   [R, W]  bos, then the target; the example without its last token
targets   int32   [R, W]  the target, then eos; the example without its first token, 0 where it is not learned
weights   float32 [R, W]  1 where the prediction counts
"""

import numpy as np

from zerotollm.data.batches.windows import Batch
from zerotollm.data.tokens.examples import TokenizedExamples
from zerotollm.data.tokens.pairs import TokenizedPairs
from zerotollm.data.tokens.text import TokenizedSplit


def pair_batch(pairs: TokenizedPairs, numbers: np.ndarray, rows: int, width: int) -> Batch:
    """Return the pairs of these numbers, and below them padding up to `rows`."""
    sources_RW, _ = _padded(pairs.sources, numbers, rows, width)
    targets_RW, weights_RW = _padded(pairs.targets, numbers, rows, width)
    pad, bos, eos = pairs.targets.special
    inputs_RW = np.where(weights_RW > 0, np.roll(targets_RW, 1, axis=1), pad)
    inputs_RW[:, 0] = np.where(weights_RW[:, 0] > 0, bos, pad)
    # Attention needs at least one token, also in a row of padding.
    sources_RW[len(numbers) :, 0] = eos
    return {"sources": sources_RW, "inputs": inputs_RW, "targets": targets_RW, "weights": weights_RW}


def _padded(
    side: TokenizedSplit, numbers: np.ndarray, rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    ends_D = np.append(side.document_starts_D[1:], len(side.tokens_N))
    start_R, end_R = side.document_starts_D[numbers] + 1, ends_D[numbers]  # without the stored bos
    index_RW = start_R[:, None] + np.arange(width)
    text_RW = side.tokens_N.take(index_RW, mode="clip").astype(np.int32)
    text_RW[index_RW == end_R[:, None]] = side.special.eos
    inside_RW = index_RW <= end_R[:, None]
    ids_RW = np.full((rows, width), side.special.pad, np.int32)
    weights_RW = np.zeros((rows, width), np.float32)
    ids_RW[: len(numbers)] = np.where(inside_RW, text_RW, side.special.pad)
    weights_RW[: len(numbers)] = inside_RW
    return ids_RW, weights_RW


def example_batch(examples: TokenizedExamples, numbers: np.ndarray, rows: int, width: int) -> Batch:
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
