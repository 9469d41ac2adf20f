"""Three tricks that were better for every seed, together: cautious updates, cautious decay, and the length ramp."""

from dataclasses import replace

import optax

from experiments.tricks import length_ramp
from experiments.tricks.cautious_decay import add_cautious_decay
from experiments.tricks.cautious_update import cautious
from zerotollm.data.feed import Feed
from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer, scale_by_muon


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in optimizer with cautious updates and cautious decay of hidden matrices."""
    c = experiment.optimizer
    muon = cautious(scale_by_muon(c.momentum, c.iterations, c.block))
    rule = optax.chain(muon, add_cautious_decay(c.weight_decay))
    return make_optimizer(replace(c, weight_decay=0.0), experiment.train.steps, hidden=rule)


def dataset(experiment: Experiment) -> Feed:
    """Return the batches of the length ramp."""
    return length_ramp.dataset(experiment)
