"""Question: how good a model of English can two CPU cores train from scratch in a few minutes?

Group: from raw text

Command: python launch.py --experiment base

Time: 7:55 to 8:24 on 2 slow CPU cores (AMD EPYC, AVX2), from an empty cache to the last sample

Expected: 1.176 bits per byte on the validation chapters of bible-web (one seed)
"""

from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig


def experiment() -> Experiment:
    """Return the defaults, a decoder on the World English Bible, with token shift.

    The first layer reads the three previous tokens without attention, and the model needs half the steps of
    `base_qwen3`. No other library has token shift.
    """
    return Experiment(name="base", model=TransformerConfig(token_shift=3))
