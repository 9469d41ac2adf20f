"""Question: how much does the larger model of "Attention Is All You Need" gain?

Group: translation

Command: python launch.py --experiment vaswani_big

Time: not yet measured; the paper took 3.5 days on 8 P100 GPUs

Expected: not yet measured; the paper reports 28.4 tokenized BLEU on newstest2014, English to German
"""

from experiments.vaswani_base import experiment as vaswani_base
from experiments.vaswani_base import rate
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import changed


def experiment() -> Experiment:
    """Return the last row of the paper's Table 3: twice the width, 16 heads, dropout 0.3, 300,000 steps.

    It has 214 million parameters, in the paper 213. The mean of 20 checkpoints is evaluated (section 6.1).
    """
    return changed(
        vaswani_base(),
        {
            "name": "vaswani_big",
            "model.width": 1024,
            "model.num_heads": 16,
            "model.ff_width": 4096,
            "model.dropout": 0.3,
            "optimizer.learning_rate": rate(1024),
            "train.steps": 300_000,
            "train.keep": 20,
            "train.average": 20,
        },
    )
