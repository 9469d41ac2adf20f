"""Question: does a decoder that knows the target language translate as well as an encoder-decoder made for it?

Command: python launch.py --experiment finetune_translate --train.start-from runs/base

Time: not yet measured

Expected: not yet measured
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`base` on the pairs of `translate`: it reads a verse and a line end, and the loss is on the translation alone.

    `evaluate --split test` gives BLEU, as it does for `translate`, the encoder-decoder on the same pairs.
    """
    parent = base()
    return replace(
        parent,
        name="finetune_translate",
        data=replace(parent.data, corpus="bible-wyc:bible-web", context=192, batch_size=8),
        optimizer=replace(
            parent.optimizer, learning_rate=0.004, adam_learning_rate=0.005, embedding_learning_rate=0.04
        ),
        train=replace(
            parent.train,
            objective="completion",
            steps=1000,
            eval_every=250,
            sample_every=500,
            checkpoint_every=250,
        ),
        sample=replace(
            parent.sample, prompt="In the bigynnyng God made of nouyt heuene and erthe.", max_tokens=80
        ),
    )
