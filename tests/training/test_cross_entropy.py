"""Chunked cross-entropy against the plain one on all logits, in value and in gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerotollm.training import cross_entropy as module
from zerotollm.training.cross_entropy import Penalty, chunked_cross_entropy, rows_for, token_losses

QUICK = {"xla_backend_optimization_level": 0}
"""Of a compiler whose programs run once."""


def plain(x, head, targets, weights, penalty):
    logits = jnp.matmul(x, head.astype(x.dtype), preferred_element_type=jnp.float32)
    if penalty.soft_cap:
        logits = penalty.soft_cap * jnp.tanh(logits / penalty.soft_cap)
    loss, nats, _ = token_losses(logits, targets, penalty)
    return jnp.sum(loss * weights), jnp.sum(nats * weights)


def example(seed, B, T, D, V):
    rng = np.random.default_rng(seed)
    x, head = rng.standard_normal((B, T, D), np.float32), rng.standard_normal((D, V), np.float32)
    targets, weights = rng.integers(0, V, (B, T)), np.float32(rng.random((B, T)) < 0.8)
    return tuple(map(jnp.asarray, (x, head, targets, weights)))


@settings(max_examples=6)
@given(
    B=st.sampled_from([1, 3]),
    V=st.sampled_from([2, 40]),
    rows=st.sampled_from([0, 1, 4, 24]),
    smoothing=st.sampled_from([0.0, 0.2]),
    z_loss=st.sampled_from([0.0, 0.1]),
    soft_cap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_chunked_equals_plain(B, V, rows, smoothing, z_loss, soft_cap, seed):
    inputs, penalty = example(seed, B, 7, 5, V), Penalty(smoothing, z_loss, soft_cap)
    upstream = 0.3

    def value_and_gradients(loss):
        def scaled(x, head):
            objective, nats = loss(x, head, *inputs[2:], penalty)
            return upstream * objective, nats

        return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True), compiler_options=QUICK)(
            *inputs[:2]
        )

    ours = value_and_gradients(partial(chunked_cross_entropy, rows=rows))
    near = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    jax.tree.map(near, ours, value_and_gradients(plain))


def test_chunked_equals_plain_without_gradients():
    inputs, penalty = example(0, 2, 7, 5, 40), Penalty(0.2, 0.1, 2.0)
    ours = jax.jit(partial(chunked_cross_entropy, penalty=penalty, rows=4))(*inputs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5), ours, plain(*inputs, penalty))


@pytest.mark.parametrize(("shards", "rows"), [(2, 0), (2, 3), (7, 1)])
def test_sharded_rows_give_the_same_sums_and_gradients(monkeypatch, shards, rows):
    """As on a mesh, of which one device reckons all parts here."""
    monkeypatch.setattr(module, "row_shards", lambda: shards)
    inputs, penalty = example(0, 2, 7, 5, 40), Penalty(0.2, 0.1, 2.0)

    def value_and_gradients(loss):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs[:2])

    ours = value_and_gradients(lambda x, head: chunked_cross_entropy(x, head, *inputs[2:], penalty, rows))
    expected = value_and_gradients(lambda x, head: plain(x, head, *inputs[2:], penalty))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), ours, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_gradients_do_not_underflow_in_half_precision(dtype):
    """A vocabulary of 8,192 with even logits: probabilities of 1e-4 have few bits in float16, smaller ones none."""
    x, head, targets, weights = example(0, 1, 16, 8, 8192)
    x, head = 1e-3 * x, 1e-3 * head

    def gradients(x, loss):
        gradient = jax.grad(lambda x, head: loss(x, head, targets, weights, Penalty())[0], argnums=(0, 1))
        return jax.jit(gradient)(x, head)

    truth = gradients(x.astype(dtype).astype(jnp.float32), plain)
    ours = gradients(x.astype(dtype), chunked_cross_entropy)
    assert ours[0].dtype == dtype
    for got, wanted in zip(ours, truth, strict=True):
        error = jnp.linalg.norm(got.astype(jnp.float32) - wanted) / jnp.linalg.norm(wanted)
        assert float(error) < 1e-2


def test_all_logits_are_never_stored_forward_or_backward():
    x, head = jax.ShapeDtypeStruct((4, 64, 8), jnp.float32), jax.ShapeDtypeStruct((8, 1000), jnp.float32)
    targets, weights = jnp.zeros((4, 64), jnp.int32), jnp.ones((4, 64))

    def loss(x, head):
        return chunked_cross_entropy(x, head, targets, weights, rows=32)[0]

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, head).as_text()
    assert "256x1000" not in text
    assert "32x1000" in text


@given(tokens=st.integers(1, 10_000), vocab_size=st.integers(1, 70_000))
def test_chunks_are_even_and_bounded(tokens, vocab_size):
    rows = rows_for(tokens, vocab_size)
    assert 1 <= rows <= tokens
    assert rows * vocab_size <= 2**24 + 8 * vocab_size
    assert -(-tokens // rows) * rows - tokens < rows
    assert rows == tokens or rows % 8 == 0
    assert -(-tokens // rows) <= max(1, -(-tokens * vocab_size // 2**24)), (
        "as few chunks as the memory allows"
    )
