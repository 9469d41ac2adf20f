"""Batch-size warmup (arXiv:2505.23971; arXiv:1711.00489): half batches first, and the same tokens in all."""

from collections.abc import Sequence
from dataclasses import replace

from zerotollm import components
from zerotollm.data.batches.windows import Batch
from zerotollm.data.feed import Feed, Shapes
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.experiment import Experiment

SMALL = 0.4
"""of the steps: those with half a batch. They read a quarter of the tokens, so there are 5/4 as many steps"""


def half_batches(steps: int) -> int:
    """Return how many steps take half a batch: an even number."""
    return 2 * round(SMALL * steps / 2)


def batch_at(whole: Sequence[Batch], step: int, halves: int) -> Batch:
    """Return half of a batch for each of the first `halves` steps, then the batches that follow."""
    if step >= halves:
        return whole[step - halves // 2]
    batch, second = whole[step // 2], step % 2

    def half(rows: int) -> slice:
        return slice(rows // 2, None) if second else slice(rows // 2)

    return {name: x_BT[half(len(x_BT))] for name, x_BT in batch.items()}


def dataset(experiment: Experiment) -> Feed:
    """Return the built-in batches in the same order, of which the first are given in two halves."""
    feed, steps = components.dataset(experiment), experiment.train.steps
    halves = half_batches(steps)
    (shapes,) = feed.training_shapes
    half_shapes: Shapes = {name: ((B // 2, T), kind) for name, ((B, T), kind) in shapes.items()}

    def training(*, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
        whole = feed.training(seed=seed, process_index=process_index, process_count=process_count)
        return LazySequence(len(whole), lambda step: batch_at(whole, step, halves))

    return replace(
        feed,
        training=training,
        training_shapes=(shapes, half_shapes),
        tokens_per_step=feed.tokens_per_step * (1 - halves / steps / 2),
    )
