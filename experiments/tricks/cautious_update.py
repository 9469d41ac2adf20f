"""Cautious updates (arXiv:2411.16085): move only the weights whose update agrees in sign with their gradient."""

import jax
import jax.numpy as jnp
import optax

from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer, scale_by_muon


def cautious(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the rule with directions masked where they oppose the gradient, and rescaled (algorithm 1).

    The scale of n weights, of which k are moved, is n / (k + 1).
    """

    def mask(direction: jax.Array, gradient: jax.Array) -> jax.Array:
        agrees = direction * gradient > 0
        return direction * agrees * (agrees.size / (jnp.sum(agrees) + 1))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        directions, state = rule.update(updates, state, params)
        return jax.tree.map(mask, directions, updates), state

    return optax.GradientTransformation(rule.init, update)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in optimizer with cautious updates of hidden matrices."""
    c = experiment.optimizer
    muon = cautious(scale_by_muon(c.momentum, c.iterations, c.block))
    return make_optimizer(c, experiment.train.steps, hidden=muon)
