"""Schedule-free (arXiv:2405.15682): no decay of the rate; an average of the iterates takes its place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer

BETA = 0.9
"""weight of the average x in y, where gradients are taken"""


class ScheduleFreeState(NamedTuple):
    """The step, the iterate z, the sum of the weights of all iterates, and the state of the rule that moves z."""

    clock: optax.ScaleByScheduleState
    z: optax.Params
    total: jax.Array
    inner: optax.OptState


def schedule_free(
    rule: optax.GradientTransformation, steps: int, warmup: int, beta: float = BETA
) -> optax.GradientTransformation:
    """Return the rule applied to z, with gradients at y = (1 - beta) z + beta x.

    x is the mean of all z, weighted by their squared rate during the warmup. The parameters are y, and after the last
    step x. `rule` has a constant rate and no momentum: beta takes its place.
    """

    def init(params: optax.Params) -> ScheduleFreeState:
        clock = optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
        return ScheduleFreeState(clock, jax.tree.map(jnp.copy, params), jnp.zeros(()), rule.init(params))

    def update(
        gradients: optax.Updates, state: ScheduleFreeState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScheduleFreeState]:
        updates, inner = rule.update(gradients, state.inner, params)
        step = jnp.asarray(state.clock.count)
        weight = jnp.minimum(1.0, (step + 1) / max(1, warmup)) ** 2
        total = state.total + weight
        share, beta_or_1 = weight / total, jnp.where(step == steps - 1, 1.0, beta)

        def move(y: jax.Array, z: jax.Array, new_z: jax.Array) -> jax.Array:
            x = (y - (1 - beta) * z) / beta
            x += share * (new_z - x)
            return (1 - beta_or_1) * new_z + beta_or_1 * x - y

        new_z = jax.tree.map(jnp.add, state.z, updates)
        moves = jax.tree.map(move, params, state.z, new_z)
        return moves, ScheduleFreeState(optax.ScaleByScheduleState(step + 1), new_z, total, inner)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]  (optax does not know the state)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in rules, schedule-free. The experiment's fields switch off its decay and its momentum."""
    c, steps = experiment.optimizer, experiment.train.steps
    return schedule_free(make_optimizer(c, steps), steps, c.warmup_steps)
