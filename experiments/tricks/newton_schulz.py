"""Muon with the Newton-Schulz coefficients of Jordan (2024), which Polar Express (arXiv:2505.16932) replaced."""

import jax
import jax.numpy as jnp
import optax

from zerotollm.experiment import Experiment
from zerotollm.training.optimizers import make_optimizer, scale_by_muon

JORDAN = (3.4445, -4.7750, 2.0315)
"""The same in every iteration: steepest at 0, and singular values end between about 0.7 and 1.2."""


def orthogonalize(matrix_XY: jax.Array, iterations: int) -> jax.Array:
    """Return approximately U V^T of the singular value decomposition U S V^T (Jordan 2024, Muon)."""
    wide = matrix_XY.shape[-2] <= matrix_XY.shape[-1]
    x = matrix_XY if wide else matrix_XY.mT
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7
    a, b, c = JORDAN
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the built-in optimizer with the older coefficients, in as many iterations."""
    c = experiment.optimizer
    muon = scale_by_muon(c.momentum, c.iterations, c.block, orthogonalize)
    return make_optimizer(c, experiment.train.steps, hidden=muon)
