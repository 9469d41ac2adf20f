"""NorMuon (arXiv:2510.05491): Muon, then every neuron's update scaled to about the same length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer, scale_by_muon

EPSILON = 1e-10


class NeuronState(NamedTuple):
    """The mean square of each neuron's direction, a moving average: (1, Y) for a kernel (X, Y)."""

    mean_squares: optax.Updates


def normalize_neurons(decay: float) -> optax.GradientTransformation:
    """Return the rule that divides each neuron's direction by its usual root mean square.

    A neuron is a column of a kernel (in X, out Y). The Frobenius norm of the direction stays as it was.
    """

    def init(params: optax.Params) -> NeuronState:
        return NeuronState(jax.tree.map(lambda kernel_XY: jnp.zeros((1, kernel_XY.shape[1])), params))

    def normalize(direction_XY: jax.Array, mean_square_1Y: jax.Array) -> jax.Array:
        normalized_XY = direction_XY / (jnp.sqrt(mean_square_1Y) + EPSILON)
        return normalized_XY * (
            jnp.linalg.norm(direction_XY) / jnp.maximum(jnp.linalg.norm(normalized_XY), EPSILON)
        )

    def update(
        directions: optax.Updates, state: NeuronState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NeuronState]:
        mean_squares = jax.tree.map(
            lambda v_1Y, o_XY: decay * v_1Y + (1 - decay) * jnp.mean(o_XY**2, axis=0, keepdims=True),
            state.mean_squares,
            directions,
        )
        return jax.tree.map(normalize, directions, mean_squares), NeuronState(mean_squares)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]  (optax does not know the state)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in optimizer with the neurons of hidden matrices normalized."""
    c = experiment.optimizer
    muon = scale_by_muon(c.momentum, c.iterations, c.block)
    return make_optimizer(c, experiment.train.steps, hidden=optax.chain(muon, normalize_neurons(c.beta2)))
