"""Question: how fast can a model of single characters reach what a plain GPT reaches on tiny Shakespeare?

Group: from raw text

Command: python launch.py --experiment shakespeare_char --data.corpus input.txt

Time: 11 to 15 seconds to the loss and 15 to 19 to exit on 2 CPU cores (AMD EPYC), compilation included; a plain
PyTorch GPT takes 145 to 166 on the same ones

Expected: 1.889 nats per character over the last 10 % of the text (two seeds)
"""

from dataclasses import replace

from experiments.base import experiment as base
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`base` on single characters of a file that the command line names; its last tenth is for validation.

    Narrow and shallow, on small batches, at high rates: what falls fastest in the first seconds. The last three
    characters reach the first layer without attention (`token_shift`).
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
        model=replace(parent.model, num_layers=2, width=96),
        optimizer=replace(
            parent.optimizer,
            learning_rate=0.03,
            adam_learning_rate=0.02,
            embedding_learning_rate=0.1,
            warmup_steps=5,
            decay_fraction=1.0,
            momentum=0.9,
        ),
        train=replace(parent.train, steps=240),
        sample=replace(parent.sample, prompt="ROMEO:", max_tokens=200),
    )
