"""Question: how soon does a model of tiny Shakespeare reach 1.4697 nats per character, on your machine?

Group: speedruns

Command: python launch.py --experiment speedrun_char --data.corpus input.txt

Time: 10:58 a seed on 2 CPU cores (Intel Xeon, AVX-512), three seeds

Expected: 1.4466, 1.4507 and 1.4534 nats per character (seeds 0 to 2), and a record as in docs/results/speedrun.md,
which has the rules. 2,300 steps were too few: seeds 0 and 1 had 1.4665 and 1.4807
"""

from dataclasses import replace

from experiments.shakespeare_char_best import experiment as shakespeare_char_best
from zerotollm.experiment import Experiment
from zerotollm.studies.speedrun import Target


def experiment() -> Experiment:
    """Return `shakespeare_char_best` with more steps: what a better recipe replaces."""
    parent = shakespeare_char_best()
    return replace(parent, name="speedrun_char", train=replace(parent.train, steps=3000))


def target() -> Target:
    """Return the loss that nanoGPT's model of characters reaches, on the last tenth of the text."""
    return Target(
        1.4697, "nats per character", "ec732318c431d4de564d5849f0c473b1a1a7b30c2580a316996847ad25bd786e"
    )
