"""Question: how good a model of English can two CPU cores train from nothing in a few minutes?

Command: python launch.py --experiment base

Time: 8 minutes on 2 CPU cores, from an empty cache to the last sample

Expected: 1.171 bits per byte on the validation chapters of bible-web (one seed)
"""

from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig


def experiment() -> Experiment:
    """The defaults of every config, a decoder-only Transformer on the World English Bible, with dropout: it reads
    its text almost four times."""
    return Experiment(name="base", model=TransformerConfig(dropout=0.1))
