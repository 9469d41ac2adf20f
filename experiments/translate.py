"""Question: can two CPU cores learn to turn Wycliffe's English of 1395 into English of today?

Command: python launch.py --experiment translate

Time: not yet measured

Expected: not yet measured
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`base` with an encoder, on verses of the Wycliffe Bible and of the World English Bible."""
    parent = base()
    return replace(
        parent,
        name="translate",
        data=replace(parent.data, corpus="bible-wyc:bible-web", context=128, batch_size=16),
        model=replace(
            parent.model, architecture="encoder-decoder", num_layers=3, encoder_layers=3, dropout=0.2
        ),
        train=replace(
            parent.train,
            steps=4000,
            label_smoothing=0.1,
            eval_every=1000,
            sample_every=1000,
            checkpoint_every=1000,
        ),
        sample=replace(
            parent.sample,
            prompt="In the bigynnyng God made of nouyt heuene and erthe.",
            max_tokens=50,
        ),
    )
