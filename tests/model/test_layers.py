"""The parts of the model, each against NumPy: rotations, norms, projections, attention across two texts, slots."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model import by_hand
from tests.model.by_hand import attend
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.layers import (
    Attention,
    Dropout,
    FeedForward,
    KVCache,
    Norm,
    attention_weights,
    fan_in_normal,
    fuse_projections,
    linear,
    residual_gain,
    rope,
    sinusoid,
    source_keys_values,
    write_slots,
)
from zerotollm.sharding.constraints import AXES, concurrent_parts

CONFIG = resolve(
    TransformerConfig(width=24, num_heads=4, num_kv_heads=2, key_width=4, ff_width=20, biases="all"),
    vocab_size=64,
    context=16,
)


def random(*shape, seed=0, mean=0.0):
    return np.random.default_rng(seed).normal(mean, 0.5, shape).astype(np.float32)


def noisy(module, *inputs, seed=1, **more):
    """Parameters of a module, each random; scales lie around 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **more))["params"]

    def draw(path, leaf):
        return rng.normal(float(path[-1].key == "scale"), 0.4, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def apply(module, params, *inputs, **more):
    """Apply a module in one compiled program: operation by operation, each would be compiled alone."""
    return jax.jit(module.apply)({"params": params}, *inputs, **more)


@pytest.mark.parametrize(
    "scaling", [{}, {"rope_factor": 3.0}, {"rope_factor": 3.0, "rope_original_length": 50}], ids=str
)
def test_rope_rotates_each_pair_by_its_angle(scaling):
    x_BHTC, positions_BT = random(2, 3, 5, 8), np.array([[0, 1, 2, 3, 4], [7, 7, 90, 3, 1]])
    config = replace(CONFIG, rope_theta=50.0, **scaling)
    ours = rope(config, jnp.asarray(x_BHTC), jnp.asarray(positions_BT))
    for b in range(2):
        for h in range(3):
            expected = by_hand.rope(x_BHTC[b, h], config, positions_BT[b])
            np.testing.assert_allclose(ours[b, h], expected, atol=1e-5)


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_sinusoids_match_the_formula(layout):
    config = replace(CONFIG, sinusoid_layout=layout)
    expected = by_hand.sinusoids(9, config)
    np.testing.assert_allclose(sinusoid(jnp.arange(9)[None], 24, layout)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_match_their_equations_on_any_number_of_axes(kind):
    config = replace(CONFIG, norm=kind, norm_epsilon=0.3)
    x = random(2, 3, 8, mean=1.0)
    params = noisy(Norm(config), x)
    np.testing.assert_allclose(apply(Norm(config), params, x), by_hand.norm(params, x, config), atol=1e-5)
    half = apply(Norm(config), params, x.astype(jnp.float16))
    assert half.dtype == jnp.float16


def test_linear_is_a_product_plus_bias_in_the_requested_type():
    x_BTX, kernel_XY, bias_Y = random(2, 3, 4), random(4, 5, seed=1), random(5, seed=2)
    np.testing.assert_allclose(linear(x_BTX, kernel_XY, bias_Y), x_BTX @ kernel_XY + bias_Y, atol=1e-5)
    half = linear(jnp.asarray(x_BTX, jnp.float16), kernel_XY, bias_Y)
    assert half.dtype == jnp.float16
    assert linear(jnp.asarray(x_BTX, jnp.float16), kernel_XY, out_type=jnp.float32).dtype == jnp.float32


def test_initial_scales():
    drawn = fan_in_normal(100, 3.0)(jax.random.key(0), (100, 400), jnp.float32)
    assert float(jnp.std(drawn)) == pytest.approx(0.3, rel=0.02)
    for kind, gain in (("scaled", 8**-0.5), ("plain", 1.0), ("zero", 0.0)):
        assert residual_gain(replace(CONFIG, num_layers=4, initialization=kind)) == gain


def test_queries_share_keys_by_groups_and_a_masked_query_has_equal_weights():
    q, k, v = random(2, 4, 3, 8), random(2, 2, 5, 8, seed=1), random(2, 2, 5, 6, seed=2)
    mask_BTS = np.random.default_rng(3).random((2, 3, 5)) < 0.6
    mask_BTS[0, 1] = False
    weights = attention_weights(jnp.asarray(q), jnp.asarray(k), jnp.asarray(mask_BTS))
    np.testing.assert_allclose(weights[0, :, 1], 0.2, atol=1e-6)
    mixed = attend(*map(jnp.asarray, (q, k, v, mask_BTS)))
    for b in range(2):
        for h in range(4):
            scores = np.where(mask_BTS[b], q[b, h] @ k[b, h // 2].T / np.sqrt(8), np.finfo(np.float32).min)
            np.testing.assert_allclose(mixed[b, h], by_hand.softmax(scores) @ v[b, h // 2], atol=1e-5)


@pytest.mark.parametrize("cross_rope", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_cross_attention_with_and_without_precomputed_keys_and_values(cross_rope, qk_norm):
    config = replace(CONFIG, cross_rope=cross_rope, qk_norm=qk_norm)
    x_BTD, source_BSD = random(2, 3, 24), random(2, 7, 24, seed=1)
    mask_BS = np.arange(7)[None] < np.array([[7], [4]])
    module, positions_BT = Attention(config), jnp.arange(3)[None]
    params = noisy(module, x_BTD, mask_BS[:, None], positions_BT, context_BSD=source_BSD)

    def run(**more):
        return apply(module, params, x_BTD, mask_BS[:, None], positions_BT, **more)

    ours, kept = run(context_BSD=jnp.asarray(source_BSD))
    for b in range(2):
        expected = by_hand.attention(params, x_BTD[b], source_BSD[b], mask_BS[b][None], config, cross_rope)
        np.testing.assert_allclose(ours[b], expected, atol=2e-5)
    known = source_keys_values(config, params, jnp.asarray(source_BSD))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), known, kept)
    again, _ = run(known=known)
    np.testing.assert_allclose(again, ours, atol=1e-5)


def test_self_attention_fused_and_with_a_cache():
    x_BTD, positions_BT = random(2, 3, 24), jnp.array([[4, 5, 6]])
    module, past = Attention(CONFIG), np.tril(np.ones((1, 3, 3), bool))
    params = noisy(module, x_BTD, past, positions_BT)
    ours, new = apply(module, params, x_BTD, past, positions_BT)
    for b in range(2):
        # Rotary positions matter by their differences alone.
        expected = by_hand.attention(params, x_BTD[b], x_BTD[b], past[0], CONFIG, True)
        np.testing.assert_allclose(ours[b], expected, atol=2e-5)
    cache = KVCache(jnp.full((2, 2, 9, 4), 50.0), jnp.full((2, 2, 9, 6), 50.0))
    reach_BTS = (jnp.arange(9)[None, None] >= 4) & (jnp.arange(9)[None, None] <= positions_BT[..., None])
    cached, whole = apply(module, params, x_BTD, reach_BTS, positions_BT, cache=cache, slot=4)
    np.testing.assert_allclose(cached, ours, atol=1e-5)
    np.testing.assert_allclose(whole.keys_BKSC[:, :, 4:7], new.keys_BKSC, atol=1e-6)
    np.testing.assert_array_equal(whole.values_BKSC[:, :, [0, 3, 7, 8]], 50.0)
    fused = fuse_projections(params)
    apart = {"query", "key", "value", "query_bias", "key_bias", "value_bias"}
    assert set(params) == apart | {"output", "output_bias", "query_norm", "key_norm"}
    assert set(fused) == set(params) - apart | {"query+key+value", "query+key+value_bias"}
    together, _ = apply(module, fused, x_BTD, past, positions_BT)
    np.testing.assert_allclose(together, ours, atol=1e-5)


def test_only_matrices_with_the_same_input_are_fused():
    params = {
        "attention": {"query": random(4, 6), "key": random(4, 2), "value": random(4, 2), "key_bias": random(2)},
        "cross_attention": {"query": random(4, 6), "key": random(4, 2), "value": random(4, 2)},
        "feed_forward": {"gate": random(4, 3), "up": random(4, 3, seed=1), "down": random(3, 4)},
        "embedding": random(5, 4),
    }  # fmt: skip
    fused = fuse_projections(params)
    assert set(fused["attention"]) == {"query+key+value", "query+key+value_bias"}
    np.testing.assert_array_equal(
        fused["attention"]["query+key+value_bias"], [*np.zeros(6), *params["attention"]["key_bias"], 0, 0]
    )
    assert set(fused["cross_attention"]) == {"query", "key", "value"}
    np.testing.assert_array_equal(
        fused["feed_forward"]["gate+up"],
        np.concatenate([params["feed_forward"]["gate"], params["feed_forward"]["up"]], axis=1),
    )
    assert "gate" in params["feed_forward"], "what was given is left as it was"


@pytest.mark.parametrize("kind", ["swiglu", "gelu", "relu", "relu2", "silu"])
@pytest.mark.parametrize("biases", ["none", "feed_forward"])
def test_feed_forward_matches_its_formula_fused_or_not(kind, biases):
    config, x_BTD = replace(CONFIG, feed_forward=kind, biases=biases), random(2, 3, 24)
    module = FeedForward(config)
    params = noisy(module, x_BTD)
    kernels = {"gate", "up", "down"} if kind == "swiglu" else {"up", "down"}
    assert set(params) == kernels | ({f"{name}_bias" for name in kernels} if biases != "none" else set())
    expected = by_hand.feed_forward(params, x_BTD, config)
    for form in (params, fuse_projections(params)):
        np.testing.assert_allclose(apply(module, form, x_BTD), expected, atol=2e-5)


def test_slots_are_written_for_all_rows_or_per_row():
    cache, new = random(2, 1, 6, 3), random(2, 1, 2, 3, seed=1)
    for slot in (3, np.array([3, 1])):
        written = np.asarray(write_slots(jnp.asarray(cache), jnp.asarray(new), jnp.asarray(slot)))
        for row, at in enumerate(np.broadcast_to(slot, 2)):
            expected = cache[row].copy()
            expected[:, at : at + 2] = new[row]
            np.testing.assert_array_equal(written[row], expected)


def test_dropout_drops_a_fraction_and_keeps_the_mean():
    x = jnp.ones((200, 301))
    dropped = Dropout(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(np.asarray(dropped)), [0, 4 / 3], rtol=1e-4)
    assert float(jnp.mean(dropped == 0)) == pytest.approx(0.25, abs=0.01)
    columns = np.asarray((dropped == 0).mean(0))
    assert 0.05 < columns.min() < columns.max() < 0.45, "no feature is kept or dropped for all"
    np.testing.assert_array_equal(Dropout(0.25).apply({}, x, deterministic=True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, deterministic=False), x)


@pytest.mark.parametrize("mask_rows", [1, 4])
def test_attention_in_halves_is_attention_of_the_whole_batch(mask_rows):
    """Training on a CPU computes two halves of the rows; explaining keeps the weights of all rows in one array."""
    mask_BTS = (
        jnp.asarray(np.random.default_rng(1).random((mask_rows, 6, 6)) < 0.7) | jnp.eye(6, dtype=bool)[None]
    )
    x_BTD, positions = jnp.asarray(random(4, 6, 24)), jnp.arange(6)[None]
    net = Attention(CONFIG)
    params = noisy(net, x_BTD, mask_BTS, positions)
    apply = jax.jit(net.apply, static_argnames="mutable")
    halves, _ = apply({"params": params}, x_BTD, mask_BTS, positions)
    (whole, _), sown = apply({"params": params}, x_BTD, mask_BTS, positions, mutable="intermediates")
    np.testing.assert_array_equal(halves, whole)
    assert sown["intermediates"]["weights_BHTS"][0].shape == (4, 4, 6, 6)


def test_rows_are_split_where_one_cpu_computes_them():
    assert [concurrent_parts(rows) for rows in (1, 2, 3, 64)] == [1, 2, 1, 2]
    mesh = jax.sharding.AbstractMesh((2, 1, 1), AXES)
    with jax.sharding.use_abstract_mesh(mesh):
        assert concurrent_parts(64) == 1
