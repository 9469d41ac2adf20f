"""Question: how fast can a model of characters reach the loss of a plain GPT on tiny Shakespeare?

Group: from raw text

Command: python launch.py --experiment shakespeare_char --data.corpus input.txt

Time: 11 to 15 seconds to the loss and 15 to 19 to exit on 2 CPU cores (AMD EPYC), with compilation; a plain PyTorch
GPT takes 145 to 166 seconds on the same cores

Expected: 1.867, 1.873 and 1.884 nats per character over the last 10 % of the text (seeds 0 to 2)
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `base` on the characters of a file, whose last tenth is held out for validation.

    It is narrow and shallow, with small batches and high learning rates, for the lowest loss after a few seconds.
    """
    parent = base()
    return replace(
        parent,
        name="shakespeare_char",
        data=replace(
            parent.data,
            corpus="",
            documents="file",
            validation_fraction=0.1,
            test_fraction=0.0,
            context=64,
            batch_size=8,
        ),
        tokenizer=replace(parent.tokenizer, kind="char", byte_fallback=False),
        model=replace(parent.model, num_layers=2, width=96, previous_token_layers=1),
        optimizer=replace(
            parent.optimizer,
            learning_rate=0.03,
            adam_learning_rate=0.02,
            embedding_learning_rate=0.1,
            warmup_steps=5,
            decay_fraction=1.0,
            momentum=0.9,
        ),
        train=replace(parent.train, steps=240, eval_every=0),
        sample=replace(parent.sample, prompt="ROMEO:", max_tokens=200),
    )
