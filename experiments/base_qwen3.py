"""Question: how much worse than `base` is the exact Qwen3 architecture, which other software can load?

Group: from raw text

Command: python launch.py --experiment base_qwen3

Time: 7:42 on 2 CPU cores (Intel Xeon, AVX-512), from an empty cache to the last sample

Expected: 1.1708 bits per byte on the validation chapters of bible-web (one seed)
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `base` without token shift, which no other library has; trained for twice the steps (almost four epochs),
    with dropout."""
    parent = base()
    return replace(
        parent,
        name="base_qwen3",
        model=replace(parent.model, token_shift=0, dropout=0.1),
        optimizer=replace(parent.optimizer, embedding_learning_rate=0.05),
        train=replace(parent.train, steps=3300),
    )
