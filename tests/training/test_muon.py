"""Muon's blocks: what is orthogonalized together, and that the size of an update does not depend on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.training.optimizers import muon_directions, orthogonalize, parameter_groups


def direction(kernel, block, writes_residual):
    return muon_directions([kernel], [writes_residual], iterations=5, block=block)[0]


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (96, 32)])
@pytest.mark.parametrize("writes_residual", [False, True])
def test_blocks_keep_the_norm_of_the_update(shape, writes_residual):
    kernel = jax.random.normal(jax.random.key(0), shape)
    expected = (min(shape) * max(1.0, shape[1] / shape[0])) ** 0.5
    for block in (0, 8, 16, 7):
        norm = float(jnp.linalg.norm(direction(kernel, block, writes_residual)))
        assert norm == pytest.approx(expected, rel=0.1), block


def test_each_head_is_orthogonalized_on_its_own():
    kernel = jax.random.normal(jax.random.key(0), (32, 48))
    blocks = direction(kernel, 16, False)
    alone = direction(kernel.at[:, 16:].set(0.0), 16, False)
    np.testing.assert_allclose(blocks[:, :16], alone[:, :16], rtol=1e-4, atol=1e-6)
    gram = blocks[:, :16].T @ blocks[:, :16]
    np.testing.assert_allclose(gram, jnp.eye(16) * gram[0, 0], atol=0.3 * float(gram[0, 0]))
    np.testing.assert_allclose(
        direction(kernel.T, 16, True), blocks.T * (32 / 48) ** 0.5, rtol=1e-3, atol=1e-5
    )


def test_without_blocks_it_is_plain_muon():
    kernel = jax.random.normal(jax.random.key(0), (16, 64))
    np.testing.assert_allclose(
        direction(kernel, 0, False), orthogonalize(kernel, 5) * 2.0, rtol=1e-3, atol=1e-5
    )


def test_kernels_do_not_mix():
    """Blocks of one shape are orthogonalized in one batch; each kernel gets what it would get alone."""
    shapes = [(32, 32), (32, 64), (64, 32), (32, 32), (32, 20)]
    writes = [False, False, True, True, False]
    kernels = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    together = muon_directions(kernels, writes, iterations=5, block=16)
    for kernel, residual, update in zip(kernels, writes, together, strict=True):
        np.testing.assert_allclose(update, direction(kernel, 16, residual), rtol=1e-3, atol=1e-4)


def test_groups():
    params = {
        "embedding": jnp.zeros((8, 4)),
        "head": jnp.zeros((4, 8)),
        "final_norm": {"scale": jnp.zeros(4)},
        "layer_0": {"attention": {"query": jnp.zeros((4, 4)), "query_norm": {"scale": jnp.zeros(4)}}},
    }
    assert parameter_groups(params) == {
        "embedding": "embedding",
        "head": "rest",
        "final_norm": {"scale": "rest"},
        "layer_0": {"attention": {"query": "hidden", "query_norm": {"scale": "rest"}}},
    }
