"""Question: how good a model of English can two CPU cores train from scratch in a few minutes?

Group: from raw text

Command: python launch.py --experiment base

Time: 7:55 to 8:24 on 2 slow CPU cores (AMD EPYC, AVX2), from an empty cache to the last sample

Expected: 1.176 bits per byte on the validation chapters of bible-web (one seed)
"""

from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig


def experiment() -> Experiment:
    """Return the defaults, a decoder on the World English Bible, with the architecture of Qwen2.

    Three heads of the first layer are initialized to attend to the token 1, 2 and 3 before. The model then needs half
    the steps of one without, and other software loads it.
    """
    model = TransformerConfig(biases="qkv", qk_norm=False, previous_token_heads=3)
    return Experiment(name="base", model=model)
