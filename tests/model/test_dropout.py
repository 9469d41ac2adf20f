"""Dropout: the share it drops, that it keeps the mean, and that a key decides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.model.layers import Dropout


@partial(jax.jit, static_argnames=("rate", "deterministic"))
def drop(rate, x, seed=0, deterministic=False):
    return Dropout(rate).apply({}, x, deterministic=deterministic, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [64, 63])
def test_drops_a_fraction_and_keeps_the_mean(rate, width):
    y = np.asarray(drop(rate, jnp.ones((50, 40, width))))
    noise = 5 * (rate * (1 - rate) / y.size) ** 0.5
    assert (y == 0).mean() == pytest.approx(rate, abs=noise)
    assert y.mean() == pytest.approx(1, abs=noise / (1 - rate))
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-3)


def test_halves_of_a_row_are_independent():
    y = np.asarray(drop(0.5, jnp.ones((4000, 8)))) != 0
    agreement = (y[:, :4] == y[:, 4:]).mean()
    assert agreement == pytest.approx(0.5, abs=0.02)


def test_the_key_determines_dropout_and_rate_0_or_evaluation_disables_it():
    x = jnp.arange(64.0).reshape(1, 8, 8)
    assert (drop(0.5, x, 1) == drop(0.5, x, 1)).all()
    assert (drop(0.5, x, 1) != drop(0.5, x, 2)).any()
    assert (drop(0.0, x) == x).all()
    assert (drop(0.5, x, deterministic=True) == x).all()
