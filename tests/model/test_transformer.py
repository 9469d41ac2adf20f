"""Properties of the decoder: what it can see, and that packing and shapes do not change a text's logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.layers import rope, sinusoid
from zerotollm.model.transformer import Transformer, document_positions

CONFIG = resolve(
    TransformerConfig(num_layers=1, width=32, num_heads=4, num_kv_heads=2), vocab_size=64, context=16
)
VARIANTS = {
    "default": {},
    "two layers": {"num_layers": 2},
    "layer norm": {"norm": "layer"},
    "post-norm": {"norm_position": "post"},
    "sinusoidal": {"position": "sinusoidal"},
    "learned": {"position": "learned"},
    "no position": {"position": "none"},
    "gelu": {"feed_forward": "gelu"},
    "relu": {"feed_forward": "relu"},
    "relu2": {"feed_forward": "relu2"},
    "one key head": {"num_kv_heads": 1},
    "no qk-norm": {"qk_norm": False},
    "tied": {"tie_embeddings": True},
    "token shift": {"token_shift": 3},
    "scaled embedding": {"embedding_scale": True},
    "soft cap": {"logit_soft_cap": 5.0},
    "wide heads": {"head_width": 16},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def init(config):
    """Random parameters; norm scales and biases are away from 1 and 0, so that a forgotten one shows."""
    rng = np.random.default_rng(1)

    def random(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.1 if leaf.ndim == 1 else 0.2, leaf.shape), jnp.float32)

    shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return jax.tree_util.tree_map_with_path(random, shapes["params"])


def tokens(batch, length, seed=2):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, 64)


@each_variant
def test_no_position_sees_a_later_token(changes):
    config = replace(CONFIG, **changes)
    params = init(config)
    # Every token of this row is used once, so a row of the embedding's gradient belongs to one position.
    tokens_BT, positions = jnp.arange(16)[None], np.array([0, 5, 15])

    def sums(embedding_VD):
        params_here = {"params": params | {"embedding": embedding_VD}}
        # Of what the head reads: with tied embeddings, every row matters to every logit.
        x_BTD, _ = Transformer(config).apply(params_here, tokens_BT, with_logits=False)
        return (x_BTD[0, positions] * jnp.arange(1.0, config.width + 1)[None]).sum(-1)

    for position, gradient_VD in zip(positions, jax.jacrev(sums)(params["embedding"]), strict=True):
        seen = np.abs(np.asarray(gradient_VD))[:16].sum(-1) > 0
        assert seen[: position + 1].all(), "an earlier token has no influence"
        assert not seen[position + 1 :].any(), "a later token has influence"


@each_variant
def test_a_later_token_changes_nothing_before_it(changes):
    config = replace(CONFIG, **changes)
    params = init(config)
    tokens_BT = tokens(1, 16)
    changed_BT = tokens_BT.at[0, 9].set((tokens_BT[0, 9] + 1) % 64)
    a, b = (Transformer(config).apply({"params": params}, t) for t in (tokens_BT, changed_BT))
    np.testing.assert_array_equal(a[0, :9], b[0, :9])
    assert not np.allclose(a[0, 9:], b[0, 9:])


@each_variant
def test_packed_documents_equal_separate_ones(changes):
    config = replace(CONFIG, **changes)
    params = init(config)
    documents_BT = tokens(2, 8, seed=3)
    packed_BT, segments_BT = documents_BT.reshape(1, 16), jnp.array([[1] * 8 + [2] * 8])
    together = Transformer(config).apply({"params": params}, packed_BT, segments_BT)
    alone = Transformer(config).apply({"params": params}, documents_BT)
    np.testing.assert_allclose(together.reshape(alone.shape), alone, atol=2e-5)
    unmasked = Transformer(config).apply({"params": params}, packed_BT)
    assert not np.allclose(together[:, 8:], unmasked[:, 8:], atol=1e-3), "the mask does nothing"


def test_document_positions_start_again_at_each_document():
    segments_BT = jnp.array([[1, 1, 1, 2, 2, 3], [1, 2, 3, 3, 3, 3]])
    expected = [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
    np.testing.assert_array_equal(document_positions(segments_BT), expected)


def test_rope_keeps_lengths_and_sees_only_differences():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(query_position, key_position):
        turned_q = rope(q, jnp.array([[query_position]]), 100.0)
        turned_k = rope(k, jnp.array([[key_position]]), 100.0)
        return float(jnp.sum(turned_q * turned_k))

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), rel=1e-2)
    np.testing.assert_allclose(
        jnp.linalg.norm(rope(q, jnp.array([[5]]), 100.0)), jnp.linalg.norm(q), rtol=1e-5
    )


def test_sinusoid_is_the_papers_formula():
    table_TD = np.asarray(sinusoid(jnp.arange(50)[None], 16))[0]
    for position, i in ((0, 0), (3, 1), (49, 7)):
        angle = position / 10000 ** (2 * i / 16)
        assert table_TD[position, 2 * i] == pytest.approx(np.sin(angle), abs=1e-4)
        assert table_TD[position, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-4)


def test_dropout_differs_by_key_and_is_off_when_deterministic():
    config = replace(CONFIG, dropout=0.5)
    params = init(config)

    def run(key=None):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        return Transformer(config).apply(
            {"params": params}, tokens(1, 16), deterministic=key is None, rngs=rngs
        )

    assert not np.allclose(run(0), run(1))
    np.testing.assert_array_equal(run(0), run(0))
    np.testing.assert_array_equal(run(), Transformer(CONFIG).apply({"params": params}, tokens(1, 16)))


def test_parameters_are_counted_by_their_formula():
    c = resolve(TransformerConfig(), vocab_size=2048, context=128)
    shapes = jax.eval_shape(lambda: Transformer(c).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    D, F, H, K, C, V, L = (
        c.width, c.ff_width, c.num_heads, c.num_kv_heads, c.head_width, c.vocab_size, c.num_layers,
    )  # fmt: skip
    block = D * C * (2 * H + 2 * K) + 3 * D * F + 2 * D + 2 * C
    assert sum(x.size for x in jax.tree.leaves(shapes)) == L * block + 2 * V * D + D
