"""Properties of the decoder: what it can see, and that packing and shapes do not change a text's logits."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import forward, init_params
from tests.model import by_hand
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.layers import KVCache, rope, sinusoid
from zerotollm.model.transformer import document_positions

CONFIG = resolve(
    TransformerConfig(num_layers=1, width=32, num_heads=4, num_kv_heads=2), vocab_size=64, context=16
)
VARIANTS = {
    "default": {"num_layers": 2, "nope_every": 2},
    "gpt2": {
        "norm": "layer", "position": "learned", "feed_forward": "gelu", "biases": "all", "qk_norm": False,
        "tie_embeddings": True, "num_kv_heads": 4,
    },
    "paper": {
        "norm": "layer", "norm_position": "post", "position": "sinusoidal", "feed_forward": "relu",
        "embedding_scale": True, "biases": "feed_forward", "qk_norm": False,
    },
    "gemma": {"logit_soft_cap": 5.0, "head_width": 16, "key_width": 4, "num_kv_heads": 1, "feed_forward": "relu2"},
    "shifted": {"token_shift": 3, "position": "none", "feed_forward": "silu", "biases": "qkv"},
    "shifted, learned": {
        "token_shift": 2, "position": "learned", "norm_position": "post", "sinusoid_layout": "halves",
    },
    "halves": {"position": "sinusoidal", "sinusoid_layout": "halves", "embedding_scale": True, "rope_theta": 50.0},
    "labels": {"num_classes": 3, "rope_theta": 50.0, "rope_factor": 8.0, "rope_original_length": 40},
    "stretched": {"rope_factor": 2.5, "qk_norm": False},
}  # fmt: skip
"""Together every value of every choice, each with some others."""
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def init(config):
    """Random parameters; norm scales and biases are away from 1 and 0, so that a forgotten one shows."""
    rng = np.random.default_rng(1)

    def random(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.1 if leaf.ndim == 1 else 0.2, leaf.shape), jnp.float32)

    shapes = jax.eval_shape(lambda: init_params(config, 0))
    return jax.tree_util.tree_map_with_path(random, shapes)


@partial(quick_jit, static_argnums=0)
def logits(config, params, *inputs):
    return forward(config)(params, *inputs)


def tokens(batch, length, seed=2):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, 64)


@each_variant
def test_no_position_attends_to_a_later_token(changes):
    config = replace(CONFIG, **changes)
    params = init(config)
    # Every token of this row is used once, so a row of the embedding's gradient belongs to one position.
    tokens_BT, positions = jnp.arange(16)[None], np.array([0, 5, 15])

    @quick_jit
    def gradients(embedding_VD):
        return jax.jacrev(sums)(embedding_VD)

    def sums(embedding_VD):
        params_here = {"params": params | {"embedding": embedding_VD}}
        # Of what the head reads: with tied embeddings, every row matters to every logit.
        x_BTD = build_net(config).apply(params_here, {"inputs": tokens_BT}).x_BTD
        return (x_BTD[0, positions] * jnp.arange(1.0, config.width + 1)[None]).sum(-1)

    for position, gradient_VD in zip(positions, gradients(params["embedding"]), strict=True):
        seen = np.abs(np.asarray(gradient_VD))[:16].sum(-1) > 0
        assert seen[: position + 1].all(), "an earlier token has no influence"
        assert not seen[position + 1 :].any(), "a later token has influence"


@each_variant
def test_a_later_token_changes_nothing_before_it(changes):
    config = replace(CONFIG, **changes)
    params = init(config)
    tokens_BT = tokens(1, 16)
    changed_BT = tokens_BT.at[0, 9].set((tokens_BT[0, 9] + 1) % 64)
    a, b = (logits(config, params, t) for t in (tokens_BT, changed_BT))
    np.testing.assert_array_equal(a[0, :9], b[0, :9])
    assert not np.allclose(a[0, 9:], b[0, 9:])


@each_variant
def test_packed_documents_equal_separate_ones(changes):
    config = replace(CONFIG, **changes)
    params = init(config)
    documents_BT = tokens(2, 8, seed=3)
    packed_BT, segments_BT = documents_BT.reshape(1, 16), jnp.array([[1] * 8 + [2] * 8])
    together = logits(config, params, packed_BT, segments_BT)
    alone = logits(config, params, documents_BT)
    np.testing.assert_allclose(together.reshape(alone.shape), alone, atol=2e-5)
    unmasked = logits(config, params, packed_BT)
    assert not np.allclose(together[:, 8:], unmasked[:, 8:], atol=1e-3), "the mask does nothing"


@each_variant
def test_logits_match_the_equations(changes):
    config = replace(CONFIG, **changes)
    params, tokens_BT = init(config), tokens(2, 16)
    ours_BTV = logits(config, params, tokens_BT)
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for ours_TV, tokens_T in zip(ours_BTV, np.asarray(tokens_BT), strict=True):
        np.testing.assert_allclose(ours_TV, by_hand.logits(plain, config, tokens_T), atol=1e-4, rtol=1e-4)


@each_variant
def test_decoding_token_by_token_gives_the_logits_of_the_full_forward_pass(changes):
    """Two rows at two places of their caches, so that slots, positions and earlier tokens are each row's own."""
    config = replace(CONFIG, **changes)
    params, tokens_BT = init(config), tokens(2, 16)
    expected_BTV = logits(config, params, tokens_BT)
    N, ahead_B = config.token_shift, np.array([5, 2])
    lead = (2, config.num_kv_heads, 16)
    caches = (
        KVCache(jnp.zeros((*lead, config.key_width)), jnp.zeros((*lead, config.head_width))),
    ) * config.num_layers

    @quick_jit
    def step(tokens_B1, before_BN, caches, slot_B):
        readout, caches = build_net(config).apply(
            {"params": params},
            tokens_B1,
            caches,
            positions_BT=slot_B[:, None],
            mask_BTS=jnp.arange(16)[None, None] <= slot_B[:, None, None],
            slot=slot_B,
            before_BN=before_BN,
            method="decode",
        )
        return readout.logits(), caches

    padded_BT = np.pad(tokens_BT, ((0, 0), (N, 0)))
    for t in range(11):
        slot_B = np.maximum(t + ahead_B - 5, 0)
        before_BN = np.stack([row[at : at + N] for row, at in zip(padded_BT, slot_B, strict=True)])
        token_B1 = np.take_along_axis(np.asarray(tokens_BT), slot_B[:, None], 1)
        logits_B1V, caches = step(token_B1, before_BN, caches, slot_B)
        for row, at in enumerate(slot_B):
            np.testing.assert_allclose(logits_B1V[row, 0], expected_BTV[row, at], atol=1e-4)


def test_document_positions_start_again_at_each_document():
    segments_BT = jnp.array([[1, 1, 1, 2, 2, 3], [1, 2, 3, 3, 3, 3]])
    expected = [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
    np.testing.assert_array_equal(document_positions(segments_BT), expected)


def test_rope_keeps_norms_and_depends_on_differences_only():
    config, (q, k) = replace(CONFIG, rope_theta=100.0), jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(query_position, key_position):
        turned_q = rope(config, q, jnp.array([[query_position]]))
        turned_k = rope(config, k, jnp.array([[key_position]]))
        return float(jnp.sum(turned_q * turned_k))

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), rel=1e-2)
    np.testing.assert_allclose(
        jnp.linalg.norm(rope(config, q, jnp.array([[5]]))), jnp.linalg.norm(q), rtol=1e-5
    )


def test_sinusoid_matches_the_papers_formula():
    table_TD = np.asarray(sinusoid(jnp.arange(50)[None], 16))[0]
    for position, i in ((0, 0), (3, 1), (49, 7)):
        angle = position / 10000 ** (2 * i / 16)
        assert table_TD[position, 2 * i] == pytest.approx(np.sin(angle), abs=1e-4)
        assert table_TD[position, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-4)


def test_dropout_differs_by_key_and_is_off_when_deterministic():
    config = replace(CONFIG, dropout=0.5)
    params = init(config)

    @quick_jit
    def run(key=None):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        inputs = {"inputs": tokens(1, 16)}
        net = build_net(config)
        return net.apply({"params": params}, inputs, deterministic=key is None, rngs=rngs).logits()

    assert not np.allclose(run(0), run(1))
    np.testing.assert_array_equal(run(0), run(0))
    np.testing.assert_array_equal(run(), logits(CONFIG, params, tokens(1, 16)))


def test_the_number_of_parameters_matches_the_formula():
    c = resolve(TransformerConfig(), vocab_size=2048, context=128)
    shapes = jax.eval_shape(lambda: init_params(c, 0))
    D, F, H, K, C, V, L = (
        c.width, c.ff_width, c.num_heads, c.num_kv_heads, c.head_width, c.vocab_size, c.num_layers,
    )  # fmt: skip
    block = D * C * (2 * H + 2 * K) + 3 * D * F + 2 * D + 2 * C
    assert sum(x.size for x in jax.tree.leaves(shapes)) == L * block + 2 * V * D + D
