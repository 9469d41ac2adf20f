"""Moments in 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zerotollm.training.config import OptimizerConfig
from zerotollm.training.moments import store_moments_in
from zerotollm.training.optimizers import make_optimizer


@pytest.mark.parametrize("moments", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["muon", "adamw", "lion", "sgd"])
def test_moments_in_16_bits_hardly_change_updates(kind, moments):
    keys = jax.random.split(jax.random.key(0), 9)
    params = {"up": jax.random.normal(keys[0], (8, 8)), "head": jax.random.normal(keys[1], (8, 16))}

    def updates(dtype):
        rule = make_optimizer(OptimizerConfig(kind=kind, moments=dtype, weight_decay=0.0, warmup_steps=1), 8)
        state, update = rule.init(params), jax.jit(rule.update)
        for key in keys[2:]:  # gradients as small as in training: their squares are zero in float16
            gradient = jax.tree.map(lambda x, key=key: 1e-5 * (0.3 + jax.random.normal(key, x.shape)), params)
            last, state = update(gradient, state, params)
        return last, state

    (exact, _), (short, state) = updates("float32"), updates(moments)
    for ours, theirs in zip(jax.tree.leaves(short), jax.tree.leaves(exact), strict=True):
        assert float(jnp.linalg.norm(ours - theirs)) < (0.3 if kind == "lion" else 0.05) * float(
            jnp.linalg.norm(theirs)
        )
    kept = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert kept == {moments}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adams_second_moment_is_stored_as_its_root_and_counts_stay_integers(dtype):
    """After the first step it is (1 - beta2) g^2: its root is a power of two, which 16 bits hold exactly."""
    rule = store_moments_in(dtype, optax.scale_by_adam(0.5, 0.75, 0.0))
    params = {"w": jnp.zeros(3)}
    state = rule.init(params)
    gradient = {"w": jnp.array([2.0**-10, -4.0, 0.0])}
    update, state = rule.update(gradient, state, params)
    np.testing.assert_array_equal(update["w"][:2], [1.0, -1.0])  # Adam's first update is a sign
    np.testing.assert_array_equal(state.nu["w"].astype(jnp.float32), [2.0**-11, 2.0, 0.0])
    np.testing.assert_array_equal(state.mu["w"].astype(jnp.float32), [2.0**-11, -2.0, 0.0])
    assert state.nu["w"].dtype == state.mu["w"].dtype == dtype
    assert (state.count.dtype, int(state.count)) == ("int32", 1)
    update, state = rule.update(gradient, state, params)
    # Both moments without bias are again g and g^2.
    np.testing.assert_allclose(update["w"][:2], [1.0, -1.0], rtol=0.01)
    assert int(state.count) == 2


def test_float32_returns_the_same_rule():
    rule = optax.scale_by_lion(0.9, 0.99)
    assert store_moments_in("float32", rule) is rule
    state = store_moments_in("bfloat16", rule).init({"w": jnp.ones(2)})
    assert state.mu["w"].dtype == "bfloat16"
