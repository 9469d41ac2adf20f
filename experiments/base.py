"""Question: how good a model of English can two CPU cores train from nothing in a few minutes?

Group: from raw text

Command: python launch.py --experiment base

Time: 7:55 to 8:24 on 2 slow CPU cores (AMD EPYC, AVX2), from an empty cache to the last sample

Expected: 1.176 bits per byte on the validation chapters of bible-web (one seed)
"""

from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig


def experiment() -> Experiment:
    """The defaults of every config, a decoder-only Transformer on the World English Bible, and token shift.

    The three tokens before each reach the first layer without attention, which makes up for half the steps of
    `base_qwen3`. What it costs: no other library has it.
    """
    return Experiment(name="base", model=TransformerConfig(token_shift=3))
