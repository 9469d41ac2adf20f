"""Averaging of the last weights (LAWA, arXiv:2209.14981): the run ends at the mean of its last fifth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer

FRACTION = 0.2
"""of the steps: those whose weights are averaged"""


class AverageState(NamedTuple):
    """The state of the averaged rule, the step, and the mean so far."""

    clock: optax.ScaleByScheduleState
    mean: optax.Params
    inner: optax.OptState


def end_at_mean(rule: optax.GradientTransformation, steps: int, last: int) -> optax.GradientTransformation:
    """Return the rule whose last update moves the parameters to their mean after the `last` steps.

    Before that the mean changes nothing: validation during training is that of the weights that are trained.
    """

    def init(params: optax.Params) -> AverageState:
        clock = optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
        return AverageState(clock, jax.tree.map(jnp.zeros_like, params), rule.init(params))

    def update(
        gradients: optax.Updates, state: AverageState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AverageState]:
        updates, inner = rule.update(gradients, state.inner, params)
        step = jnp.asarray(state.clock.count)
        share = jnp.where(step < steps - last, 0.0, 1.0 / jnp.maximum(1, step - (steps - last) + 1))
        mean = jax.tree.map(lambda m, p, u: m + share * (p + u - m), state.mean, params, updates)
        ends = step == steps - 1
        updates = jax.tree.map(lambda u, m, p: jnp.where(ends, m - p, u), updates, mean, params)
        return updates, AverageState(optax.ScaleByScheduleState(step + 1), mean, inner)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]  (optax does not know the state)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in optimizer, whose last step ends at the mean of the last fifth."""
    steps = experiment.train.steps
    rule = make_optimizer(experiment.optimizer, steps)
    return end_at_mean(rule, steps, max(1, round(FRACTION * steps)))
