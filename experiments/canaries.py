"""Question: how often must a model read a random sequence to remember it?

Group: many runs: ablations and scaling laws

Command: python launch.py --experiment canaries canaries --seeds 5

Time: 30 minutes for 5 runs on 2 cores of an AMD EPYC that five other programs shared

Expected: exposure of 3.3 bits [2.4, 4.2] planted once (chance 1.4), and of at least 10 bits planted 10 times; greedy
decoding then writes 22 % of the sequences after their prefix, and all of those planted 100 times
"""

from experiments.base import experiment as base
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import changed


def experiment() -> Experiment:
    """Return `base` with two layers, which reads its text once in a minute or two: many runs are trained."""
    fields = {
        "name": "canaries",
        "data.context": 128,
        "data.batch_size": 8,
        "model.num_layers": 2,
        "model.width": 128,
        "model.num_heads": 4,
        "model.previous_token_layers": 1,
        "tokenizer.vocab_size": 2048,
        "train.steps": 1000,
    }
    return changed(base(), fields)
