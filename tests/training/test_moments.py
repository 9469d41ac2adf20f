"""Moments in 16 bits."""

import jax
import jax.numpy as jnp
import pytest

from zerotollm.training.config import OptimizerConfig
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
