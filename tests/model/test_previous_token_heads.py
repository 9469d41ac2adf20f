"""Heads that are initialized to attend to the previous tokens do so, in every architecture, and learn on."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zerotollm.errors import UsageError
from zerotollm.model.build import Net, Params, apply_net, build_net, init_params
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.previous_token_heads import plant_layer

PLANTED = TransformerConfig(
    num_layers=2, width=96, num_heads=3, biases="qkv", qk_norm=False, previous_token_heads=3
)
KINDS = {
    "width 32": PLANTED,
    "width 64": replace(PLANTED, width=192, num_layers=1),
    "shared key heads": replace(PLANTED, width=128, num_heads=4, num_kv_heads=2),
    "more than there are": replace(PLANTED, previous_token_heads=5),
    "one of three": replace(PLANTED, previous_token_heads=1),
    "encoder-decoder": replace(PLANTED, architecture="encoder-decoder"),
}


def resolved(config: TransformerConfig) -> TransformerConfig:
    return resolve(config, vocab_size=64, context=48)


def batch(rows: int = 2) -> dict[str, jax.Array]:
    tokens_BT = jax.random.randint(jax.random.key(1), (rows, 48), 4, 64)
    return {"inputs": tokens_BT, "sources": tokens_BT, "source_mask": tokens_BT > 0}


def attention_of(net: Net, params: Params) -> dict:
    """Return what the attention of each layer sows, from one compiled program."""
    apply = jax.jit(net.apply, static_argnames="mutable")
    return apply({"params": params}, batch(), mutable="intermediates")[1]["intermediates"]


@pytest.mark.parametrize("kind", KINDS)
def test_planted_heads_attend_to_the_tokens_before(kind):
    net = build_net(resolved(KINDS[kind]))
    params = init_params(net, 0)
    layers = [side["layer_0"] for side in find_sides(attention_of(net, params))]
    assert len(layers) == (2 if kind == "encoder-decoder" else 1)
    for layer in layers:
        (weights_BHTS,) = layer["attention"]["weights_BHTS"]
        for head in range(net.config.num_heads):
            share = np.mean([np.asarray(weights_BHTS)[:, head, t, t - head - 1] for t in range(8, 48)])
            assert (share > 0.5) == (head < net.config.previous_token_heads), (head, share)


def find_sides(tree: dict) -> list[dict]:
    return [tree] if "layer_0" in tree else [tree["encoder"], tree["decoder"]]


def test_only_queries_and_keys_of_planted_heads_of_the_first_layer_change():
    config = resolved(replace(PLANTED, previous_token_heads=2))
    planted, plain = (init_params(build_net(c), 0) for c in (config, replace(config, previous_token_heads=0)))
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.flatnonzero(
            np.any(a != b, axis=tuple(range(a.ndim - 1)))
        )
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(planted), jax.tree.leaves(plain), strict=True
        )
    }
    names = {name for name, columns in changed.items() if columns.size}
    assert names == {f"layer_0/attention/{name}{end}" for name in ("query", "key") for end in ("", "_bias")}
    assert all(max(changed[name]) < 2 * config.key_width for name in names)


def test_heads_of_another_layer_attend_to_the_tokens_before():
    config = resolved(PLANTED)
    unplanted = build_net(replace(config, previous_token_heads=0))
    params = plant_layer(config, init_params(unplanted, 0), 1)
    sown = attention_of(unplanted, params)
    for layer, planted in (("layer_0", False), ("layer_1", True)):
        (weights_BHTS,) = sown[layer]["attention"]["weights_BHTS"]
        for head in range(3):
            share = np.mean([np.asarray(weights_BHTS)[:, head, t, t - head - 1] for t in range(8, 48)])
            assert (share > 0.5) == planted, (layer, head, share)


def test_planted_heads_learn():
    """Gradients reach the planted biases and matrices."""
    net = build_net(resolved(PLANTED))
    params = init_params(net, 0)
    inputs = batch()

    def loss(params: Params) -> jax.Array:
        logits_BTV = apply_net(net, params, inputs).logits()[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, inputs["inputs"][:, 1:]).mean()

    gradients = jax.jit(jax.grad(loss))(params)["layer_0"]["attention"]
    for name in ("query", "query_bias", "key"):
        assert jnp.linalg.norm(gradients[name]) > 1e-5, name


def test_seeds_initialized_together_are_those_initialized_alone():
    net = build_net(resolved(PLANTED))
    together = jax.vmap(lambda seed: init_params(net, seed))(jnp.arange(2))
    alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(init_params(net, seed) for seed in (0, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together, alone)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"qk_norm": True}, "model.qk_norm False"),
        ({"biases": "none"}, "model.biases qkv"),
        ({"position": "learned"}, "model.position rope"),
    ],
)
def test_what_planting_needs_is_said(change, named):
    with pytest.raises(UsageError, match=named):
        resolved(replace(PLANTED, **change))
