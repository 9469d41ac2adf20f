"""Question: is token shift, which other software cannot load, better than the planted heads of `base`?

Group: from raw text

Command: python launch.py --experiment base_token_shift

Time: 7:55 to 8:24 on 2 slow CPU cores (AMD EPYC, AVX2), from an empty cache to the last sample

Expected: 1.1762, 1.1814 and 1.1761 bits per byte on the validation chapters of bible-web (seeds 0 to 2). On average
0.0001 higher than `base`, with a 95 % interval from 0.0049 lower to 0.0051 higher: no difference shown
"""

from dataclasses import replace

from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig


def experiment() -> Experiment:
    """Return `base` as it was in version 0.1: Qwen3's architecture, with token shift instead of planted heads."""
    return Experiment(name="base_token_shift", model=TransformerConfig(token_shift=3))


def with_token_shift(experiment: Experiment) -> Experiment:
    """Return an experiment with Qwen3's attention and token shift instead of planted heads."""
    plain = TransformerConfig()
    model = replace(
        experiment.model,
        token_shift=3,
        biases=plain.biases,
        qk_norm=plain.qk_norm,
        previous_token_heads=0,
        previous_token_layers=plain.previous_token_layers,
    )
    return replace(experiment, model=model)
