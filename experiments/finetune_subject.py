"""Question: what does a model of one text gain when it learns another, and what does it forget?

Command: python launch.py --experiment finetune_subject --train.start-from runs/base

Time: not yet measured

Expected: not yet measured
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`base` on the King James Bible of 1611, measured on its old text too, the World English Bible of 2000.

    For your own text add `--data.corpus my_notes/`. `--data.replay 0.25` reads the old one in every fourth step, so
    that less of it is forgotten. Without `--train.start-from` the same is trained from nothing.
    """
    parent = base()
    return replace(
        parent,
        name="finetune_subject",
        data=replace(parent.data, corpus="bible-kjv", old="bible-web"),
        optimizer=replace(
            parent.optimizer, learning_rate=0.004, adam_learning_rate=0.005, embedding_learning_rate=0.04
        ),
        train=replace(parent.train, steps=200, eval_every=0, sample_every=0, checkpoint_every=0),
        sample=replace(parent.sample, prompt="And it came to pass"),
    )
