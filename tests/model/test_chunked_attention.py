"""Chunked attention against plain attention, in value and in gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.by_hand import attend
from zerotollm.model.chunked_attention import AttentionMask, chunked_attention, fused_attention
from zerotollm.model.transformer import causal_mask

C = 4


def arrays(seed, B, H, K, T, S):
    rng = np.random.default_rng(seed)
    V = C + 2  # values may have another width
    shapes = ((B, H, T, C), (B, K, S, C), (B, K, S, V), (B, H, T, V))
    return [jnp.asarray(2 * rng.standard_normal(shape, np.float32)) for shape in shapes]


def close(ours, plain):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=5e-5), ours, plain)


def value_and_gradients(attention, q, k, v, upstream):
    def product(*qkv):
        mixed = attention(*qkv)
        return jnp.sum(mixed * upstream), mixed

    return jax.value_and_grad(product, argnums=(0, 1, 2), has_aux=True)(q, k, v)


QUICK = {"xla_backend_optimization_level": 0}
"""Of a compiler whose programs run once."""


@partial(jax.jit, static_argnames=("causal", "chunk"), compiler_options=QUICK)
def both(q, k, v, upstream, queries, keys, *, causal, chunk):
    """Values and gradients of ours and of plain attention, in one program: hypothesis draws many."""
    ours = partial(chunked_attention, mask=AttentionMask(queries, keys, causal=causal), chunk=chunk)
    if causal:
        mask = causal_mask(queries, q.shape[2])
    elif queries is None:
        mask = jnp.ones((1, q.shape[2], k.shape[2]), bool)
    else:
        mask = queries[:, :, None] == keys[:, None, :]
    plain = partial(attend, mask_BTS=mask)
    return tuple(value_and_gradients(f, q, k, v, upstream) for f in (ours, plain))


@settings(max_examples=6)
@given(
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2)]),
    T=st.sampled_from([1, 6, 13]),
    chunk=st.sampled_from([1, 4, 6, 14]),
    documents=st.booleans(),
    seed=st.integers(0, 99),
)
def test_causal_equals_plain(heads, T, chunk, documents, seed):
    B, (H, K) = 2, heads
    q, k, v, upstream = arrays(seed, B, H, K, T, T)
    segments = np.random.default_rng(seed).integers(0, 3, (B, T)).cumsum(1) // 2 if documents else None
    segments = None if segments is None else jnp.asarray(segments, jnp.int32)
    close(*both(q, k, v, upstream, segments, segments, causal=True, chunk=chunk))


@settings(max_examples=4)
@given(
    T=st.sampled_from([1, 6]),
    S=st.sampled_from([1, 9]),
    chunk=st.sampled_from([2, 5]),
    seed=st.integers(0, 99),
    padded=st.booleans(),
)
def test_cross_attention_equals_plain_even_for_a_query_without_keys(T, S, chunk, seed, padded):
    q, k, v, upstream = arrays(seed, 2, 2, 1, T, S)
    draw = np.random.default_rng(seed)
    queries = keys = None
    if padded:
        queries = jnp.asarray(draw.integers(0, 3, (2, T)), jnp.int32)
        keys = jnp.asarray(draw.integers(0, 3, (2, S)), jnp.int32)
    close(*both(q, k, v, upstream, queries, keys, causal=False, chunk=chunk))


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_half_precision_is_as_accurate_as_plain_attention(dtype):
    q, k, v, upstream = arrays(0, 2, 4, 2, 24, 24)
    truth = value_and_gradients(partial(attend, mask_BTS=causal_mask(None, 24)), q, k, v, upstream)[1]
    half = [x.astype(dtype) for x in (q, k, v)]

    def errors(attention):
        gradients = jax.jit(partial(value_and_gradients, attention), compiler_options=QUICK)(*half, upstream)[
            1
        ]
        assert all(g.dtype == dtype for g in gradients)
        return [
            float(jnp.linalg.norm(g.astype(jnp.float32) - t)) for g, t in zip(gradients, truth, strict=True)
        ]

    ours = errors(partial(chunked_attention, mask=AttentionMask(), chunk=8))
    plain = errors(partial(attend, mask_BTS=causal_mask(None, 24)))
    assert all(a < 1.5 * b for a, b in zip(ours, plain, strict=True)), (ours, plain)


def test_block_sizes_are_chosen_and_all_scores_never_stored():
    T = 1024
    q = jax.ShapeDtypeStruct((1, 1, T, C), jnp.float32)
    gradients = jax.grad(
        lambda q, k, v: jnp.sum(chunked_attention(q, k, v, AttentionMask())), argnums=(0, 1, 2)
    )
    text = jax.jit(gradients).lower(q, q, q).as_text()
    assert f"{T}x{T}" not in text
    assert "256x256" in text


def test_the_fused_kernel_gets_its_axis_order():
    """cuDNN is not here; the same call with jax's plain implementation shows that heads and times are in place."""
    q, k, v, _ = arrays(1, 2, 4, 2, 6, 6)
    v = v[..., :C]
    ours = fused_attention(q, k, v, causal=True, implementation="xla")
    np.testing.assert_allclose(ours, attend(q, k, v, causal_mask(None, 6)), rtol=2e-5, atol=2e-5)


def test_a_causal_mask_needs_equal_lengths():
    q, k, v, _ = arrays(0, 1, 1, 1, 3, 4)
    with pytest.raises(ValueError, match="as many queries as keys"):
        chunked_attention(q, k, v, AttentionMask())
