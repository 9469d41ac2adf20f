"""Question: how low is the loss on tiny Shakespeare after minutes on two CPU cores, with a longer context?

Group: from raw text

Command: python launch.py --experiment shakespeare_char_best --data.corpus input.txt

Time: 5:34 on 2 CPU cores (Intel Xeon, AVX-512); with --train.steps 8000 --model.dropout 0.1 46 minutes on shared cores
(AMD EPYC, AVX2)

Expected: 1.4473 nats per character over the last 10 % of the text (one seed); with those options 1.4281 (one seed)
"""

from dataclasses import replace

from experiments.base import experiment as base
from experiments.shakespeare_char import experiment as shakespeare_char
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `shakespeare_char` with the model of `base`, 256 characters of context, more steps and little dropout."""
    parent = shakespeare_char()
    return replace(
        parent,
        name="shakespeare_char_best",
        data=replace(parent.data, context=256, batch_size=4),
        model=replace(base().model, dropout=0.05, previous_token_layers=1),
        optimizer=replace(
            base().optimizer, learning_rate=0.01, embedding_learning_rate=0.05, decay_fraction=0.7
        ),
        train=replace(parent.train, steps=2700, eval_every=0, sample_every=0, checkpoint_every=0),
    )
