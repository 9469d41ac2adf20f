"""Sequence-length warmup (arXiv:2108.06084): short windows first, with the same tokens in every step."""

from collections.abc import Sequence
from dataclasses import replace

from zerotollm import components
from zerotollm.data.batches.windows import Batch
from zerotollm.data.feed import Feed, Shapes
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.experiment import Experiment

STAGES = ((0.25, 4), (0.5, 2))
"""(fraction of the steps up to which a window is cut, into so many pieces)"""


def pieces_at(step: int, steps: int) -> int:
    """Return into how many pieces the windows of a step are cut."""
    return next((pieces for end, pieces in STAGES if step < end * steps), 1)


def cut(batch: Batch, pieces: int) -> Batch:
    """Return the batch with every window (B, T) cut into rows (B x pieces, T / pieces): the same tokens and targets."""
    return {name: x_BT.reshape(x_BT.shape[0] * pieces, -1) for name, x_BT in batch.items()}


def dataset(experiment: Experiment) -> Feed:
    """Return the built-in batches, whose windows are cut in the first half of the steps."""
    feed, steps = components.dataset(experiment), experiment.train.steps
    (shapes,) = feed.training_shapes

    def cut_shapes(pieces: int) -> Shapes:
        return {name: ((B * pieces, T // pieces), kind) for name, ((B, T), kind) in shapes.items()}

    def training(*, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
        whole = feed.training(seed=seed, process_index=process_index, process_count=process_count)
        return LazySequence(len(whole), lambda step: cut(whole[step], pieces_at(step, steps)))

    every = sorted({pieces_at(step, steps) for step in range(steps)})
    return replace(feed, training=training, training_shapes=tuple(map(cut_shapes, every)))
