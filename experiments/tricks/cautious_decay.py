"""Cautious weight decay (arXiv:2510.12402): decay only the weights that the update moves towards zero."""

from dataclasses import replace

import jax
import optax

from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer, scale_by_muon


def add_cautious_decay(decay: float) -> optax.GradientTransformation:
    """Return the rule u + decay x [u p > 0] p for directions u and parameters p, to be subtracted."""

    def cautious(direction: jax.Array, param: jax.Array) -> jax.Array:
        return direction + decay * (direction * param > 0) * param

    def update(directions: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(cautious, directions, params)

    return optax.stateless(update)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in optimizer, whose decay of hidden matrices is cautious."""
    c = experiment.optimizer
    rule = optax.chain(scale_by_muon(c.momentum, c.iterations, c.block), add_cautious_decay(c.weight_decay))
    return make_optimizer(replace(c, weight_decay=0.0), experiment.train.steps, hidden=rule)
