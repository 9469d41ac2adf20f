"""Question: does a model with the shape of GPT-2 medium, 350 million parameters, fit into 8 GB?

Group: for your own GPU

Command: python launch.py --experiment gpt2_medium plan --device rtx2080

Time: not yet measured; the plan predicts it

Expected: not yet measured
"""

from dataclasses import replace

from experiments.gpt2_124m import experiment as gpt2_124m
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `gpt2_124m` with 24 layers of width 1,024 (Radford et al. 2019, table 2).

    It fits because the backward pass recomputes every block, momentum has 16 bits, and micro-batches have 2 windows.
    A loop over layers keeps compilation short.
    """
    parent = gpt2_124m()
    return replace(
        parent,
        name="gpt2_medium",
        model=replace(parent.model, num_layers=24, width=1024, num_heads=16),
        optimizer=replace(parent.optimizer, moments="bfloat16"),
        train=replace(parent.train, steps=108_000, micro_batches=32),
        compute=replace(parent.compute, remat="full", scan_layers=True),
    )
