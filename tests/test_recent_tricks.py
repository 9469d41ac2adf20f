"""The models, objectives and batches of `recent_tricks`: causal, trainable, and equal to plain ones at neutral values.

Its optimizers are in `tests/training/test_recent_optimizers.py`.
"""

import math
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import previous_token_heads
from experiments.recent_tricks import FOLDER, budget, code, experiment, variants
from experiments.tricks import (
    differential,
    gated_attention,
    latent_attention,
    mixture_of_experts,
    multi_token,
    peri_norm,
    sink,
    sliding_window,
    value_residual,
)
from tests.recorded import assert_recorded
from zerotollm import catalog, components
from zerotollm.components import training_of
from zerotollm.decoding.cache_growth import empty_caches
from zerotollm.evaluation.causality import sees_the_future
from zerotollm.experiment import Experiment, differences
from zerotollm.model.build import apply_net, build_net, decode, init_params
from zerotollm.model.compute_config import PLAIN
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.layers import rope, split_heads
from zerotollm.own_code import OwnCode
from zerotollm.studies.suite import BASE
from zerotollm.validation import validate

BUDGETS = ("tiny", "small", "full")
MODELS = {
    "gated_attention": gated_attention,
    "sink": sink,
    "sliding_window": sliding_window,
    "differential": differential,
    "latent_attention": latent_attention,
    "value_residual": value_residual,
    "peri_norm": peri_norm,
    "mixture_of_experts": mixture_of_experts,
    "multi_token": multi_token,
}
LATENT = {"num_kv_heads": 1, "key_width": 8}
T = 12


def config_of(name: str = "") -> TransformerConfig:
    """Return a small resolved configuration with two planted heads."""
    config = TransformerConfig(
        width=32, num_heads=2, num_layers=3, biases="qkv", qk_norm=False, previous_token_heads=2, ff_width=32
    )
    config = replace(config, **LATENT) if name == "latent_attention" else config
    return resolve(config, vocab_size=64, context=T)


def experiment_of(name: str = "") -> Experiment:
    own = code(name) if name else OwnCode()
    return replace(Experiment(), model=config_of(name), compute=PLAIN, code=own)


@cache
def net_and_params(name: str):
    """Return the net of a trick, and its parameters with vectors that are not at their neutral start."""
    net = MODELS[name].model(experiment_of(name))
    key = jax.random.key(0)

    def moved(x: jax.Array) -> jax.Array:
        return x + 0.1 * jax.random.normal(key, x.shape)

    return net, jax.tree.map(moved, init_params(net, 0))


def tokens(rows: int = 2, length: int = T) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 64, (rows, length)), jnp.int32)


def eager_logits(net, params, tokens_BT) -> jax.Array:
    return apply_net(net, params, {"inputs": tokens_BT}).logits()


# One program is compiled sooner than its operations are one by one.
logits = partial(jax.jit, static_argnums=0)(eager_logits)


@partial(jax.jit, static_argnums=0)
def decoded(net, params, tokens_BT, caches, start):
    """Return the logits of tokens from place `start`, and the caches after them."""
    positions_1T = start + jnp.arange(tokens_BT.shape[1])[None]
    mask_1TS = jnp.arange(T)[None, None] <= positions_1T[..., None]
    place = {"positions_BT": positions_1T, "mask_BTS": mask_1TS, "slot": start}
    readout, caches = decode(net, params, tokens_BT, caches, **place)
    return readout.logits(), caches


def without(params, *names: str):
    """Return the parameters without entries of these names, at any depth; "inner" gives way to its content."""
    new = {}
    for name, value in params.items():
        if name == "inner":
            new |= without(value, *names)
        elif name not in names:
            new[name] = without(value, *names) if isinstance(value, dict) else value
    return new


def with_values(params, **values: float):
    """Return the parameters whose entries of these names are filled with a value."""
    return {
        name: with_values(value, **values)
        if isinstance(value, dict)
        else jnp.full_like(value, values[name])
        if name in values
        else value
        for name, value in params.items()
    }


# --- the suite


def test_changed_fields_are_recorded_and_the_same_in_every_budget():
    derived = {}
    for size in BUDGETS:
        base = budget(experiment(), size)
        for variant in variants(base):
            names = [field for field, _, _ in differences(base, variant.experiment)]
            fields = list(dict.fromkeys("code" if name.startswith("code.") else name for name in names))
            assert derived.setdefault(variant.name, fields) == fields
            validate(variant.experiment)
    assert_recorded("variants of recent_tricks", dict(sorted(derived.items())))


def test_names_are_folders_and_every_file_is_a_variant():
    made = variants(budget(experiment(), "small"))
    names = [variant.name for variant in made]
    assert len(set(names)) == len(names)
    assert not set(names) & ({variant.group for variant in made} | {BASE})
    assert all(name.replace("-", "").isalnum() for name in names)
    assert all(variant.paper and variant.sentence for variant in made)
    planted = previous_token_heads.variants(budget(previous_token_heads.experiment(), "small"))
    used = {variant.experiment.code.module.rpartition(".")[2] for variant in (*made, *planted)} - {""}
    assert used == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert all(code(name).function(function) for name in used for function in code(name).functions.split())


def test_the_suite_is_what_its_name_alone_runs():
    """Its `budget` is that of another file, passed on."""
    folder = Path(__file__).parents[1] / "experiments"
    assert catalog.default_action(folder, "recent_tricks") == "ablate"
    assert catalog.default_action(folder, "previous_token_heads") == "ablate"
    assert catalog.default_action(folder, "own_attention") == "train"


def test_relu2_has_as_many_parameters():
    base = budget(experiment(), "small")
    counts = {}
    for variant in variants(base):
        if variant.group == "block":
            e = variant.experiment
            model = resolve(e.model, vocab_size=e.tokenizer.vocab_size, context=e.data.context)
            state = jax.eval_shape(training_of(replace(e, model=model)).init, 0, None)
            counts[variant.name] = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert counts["relu2-peri-norm"] == counts["peri-norm"]
    router, experts = 4 * 128 * 4, 4 * 3 * 128 * 384  # the base's feed-forward has half the experts' matrices
    assert counts["experts"] == counts["peri-norm"] - 4 * 2 * 128 + router + experts


# --- models


@pytest.mark.parametrize("name", MODELS)
def test_is_causal(name):
    assert not sees_the_future(MODELS[name].model(experiment_of(name)), masked=False)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_with_caches_is_the_full_forward_pass(name):
    """Five tokens at once, then one by one."""
    net, params = net_and_params(name)
    tokens_BT = tokens()
    expected = logits(net, params, tokens_BT)
    caches = empty_caches(net.config, 2, T)
    got, start = [], 0
    for length in (5, *[1] * (T - 5)):
        some_BTV, caches = decoded(net, params, tokens_BT[:, start : start + length], caches, start)
        got.append(some_BTV)
        start += length
    np.testing.assert_allclose(jnp.concatenate(got, axis=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    net, params = net_and_params(name)
    built = experiment_of(name)
    module = MODELS[name]
    objective = getattr(module, "objective", components.objective)
    batch = {
        "inputs": tokens(4),
        "targets": jnp.roll(tokens(4), -1, axis=1),
        "weights": jnp.ones((4, T)),
    }

    @jax.jit
    @jax.grad
    def gradients_of(params):
        return objective(built)(apply_net(net, params, batch), batch)[0]

    gradients = gradients_of(params)
    still = [
        jax.tree_util.keystr(path)
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients)
        if not jnp.abs(gradient).max() > 1e-7
    ]
    assert not still


def test_gates_of_a_half_halve_the_attention():
    net, params = net_and_params("gated_attention")
    params = with_values(params, attention_gate=0.0)  # sigmoid(0) = 1/2
    plain = without(params, "attention_gate")
    plain = jax.tree_util.tree_map_with_path(lambda path, x: x / 2 if path[-1].key == "output" else x, plain)
    expected = logits(build_net(config_of()), plain, tokens())
    np.testing.assert_allclose(logits(net, params, tokens()), expected, rtol=1e-5, atol=1e-5)


def test_a_sink_of_minus_infinity_is_none():
    net, params = net_and_params("sink")
    expected = logits(build_net(config_of()), without(params, "sink"), tokens())
    got = logits(net, with_values(params, sink=-1e9), tokens())
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert jnp.abs(logits(net, params, tokens()) - expected).max() > 1e-3
    weights = sink.softmax_with_sink(jnp.log(jnp.array([[[[1.0, 2.0]]]])), jnp.log(jnp.array([5.0])))
    np.testing.assert_allclose(weights[0, 0, 0], [1 / 8, 2 / 8], rtol=1e-6)


def test_the_window_is_as_wide_as_it_says(monkeypatch):
    assert sliding_window.window_mask(3, 3, 0, 2)[0].tolist() == [
        [True, True, True],
        [True, True, True],
        [False, True, True],
    ]
    by_row = sliding_window.window_mask(1, 4, jnp.array([1, 3]), 2)
    assert by_row[:, 0].tolist() == [[True] * 4, [False, False, True, True]]
    net, params = net_and_params("sliding_window")
    expected = eager_logits(build_net(config_of()), params, tokens())
    np.testing.assert_array_equal(eager_logits(net, params, tokens()), expected)  # shorter than the window
    monkeypatch.setattr(sliding_window, "WINDOW", 3)

    @jax.jit
    @jax.grad
    def gradient_of(x_VD: jax.Array) -> jax.Array:
        return eager_logits(net, params | {"embedding": x_VD}, jnp.arange(T)[None])[0, -1].sum()

    reach = jnp.abs(gradient_of(params["embedding"])[:T]).max(-1) > 0
    assert reach.tolist() == [False] * (T - 7) + [True] * 7  # three layers, two tokens back in each


def test_differential_attention_by_hand():
    net, params = net_and_params("differential")
    filled = {"lambda_query_first": 0.5, "lambda_key_first": 0.2, "lambda_query_second": 0.1}
    params = with_values(params["layer_1"]["attention"], lambda_key_second=0.1, **filled)
    params |= {"output": jnp.eye(32), "head_norm": {"scale": jnp.ones(16)}}
    x_BTD, positions_BT = jax.random.normal(jax.random.key(0), (1, T, 32)), jnp.arange(T)[None]
    mask_BTS = jnp.tril(jnp.ones((1, T, T), bool))
    attention = differential.DifferentialAttention(net.config)
    out_BTD, kv = attention.apply({"params": params}, x_BTD, mask_BTS, positions_BT)
    weight = np.exp(8 * 0.5 * 0.2) - np.exp(8 * 0.1 * 0.1) + 0.8
    q_BHTC = split_heads(x_BTD @ params["query"] + params["query_bias"][None, None], 2)
    q_BHTC = rope(net.config, q_BHTC, positions_BT)

    def softmax(q, k):
        scores = np.where(np.tril(np.ones((T, T))), q @ k.T / np.sqrt(8), -np.inf)
        return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)

    for head in range(2):
        q, k, v = (np.asarray(x[0, head], np.float64) for x in (q_BHTC, *kv))
        mixed = (softmax(q[:, ::2], k[:, ::2]) - weight * softmax(q[:, 1::2], k[:, 1::2])) @ v
        normalized = mixed / np.sqrt((mixed**2).mean(-1, keepdims=True) + 1e-6)
        got = out_BTD[0].reshape(T, 2, 16)[:, head]
        np.testing.assert_allclose(got, 0.2 * normalized, rtol=1e-3, atol=1e-4)


def test_latent_attention_keeps_one_narrow_vector_a_token():
    net, _ = net_and_params("latent_attention")
    (keys, values), *_ = empty_caches(net.config, 1, T)
    assert (keys.shape, values.shape) == ((1, 1, T, 8), (1, 1, T, 16))
    plain = empty_caches(config_of(), 1, T)[0]
    assert keys.size + values.size == 24 * T
    assert plain.keys_BKSC.size + plain.values_BKSC.size == 64 * T


def test_latent_attention_plants_heads():
    net = latent_attention.model(experiment_of("latent_attention"))
    params = init_params(net, 0)["layer_0"]["attention"]
    assert jnp.linalg.norm(params["key_bias"]) > 1
    x_BTD = jax.random.normal(jax.random.key(0), (1, T, 32))
    positions = jnp.arange(T)[None]
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    # Values that tell their place: the output of a head is the place that it attends to.
    params = params | {
        "latent": jnp.zeros((32, 16)),
        "query_content": jnp.zeros((32, 32)),
        "query": jnp.zeros((32, 16)),
        "key": jnp.zeros((32, 8)),
        "output": jnp.eye(32),
    }
    attention = latent_attention.LatentAttention(net.config)
    seen = jnp.eye(T)[:, :16] if T >= 16 else jnp.pad(jnp.eye(T), ((0, 0), (0, 16 - T)))
    params |= {"value_content": jnp.tile(jnp.eye(16), (1, 2)), "latent": jnp.eye(32, 16)}
    params |= {"latent_norm": {"scale": jnp.ones(16)}, "key_content": jnp.zeros((16, 32))}
    x_BTD = x_BTD.at[0].set(jnp.pad(seen, ((0, 0), (0, 16))))
    out_BTD, _ = attention.apply({"params": params}, x_BTD, mask, positions)
    attended = out_BTD[0].reshape(T, 2, 16).argmax(-1)
    for head in range(2):
        assert attended[head + 1 :, head].tolist() == list(range(T - head - 1))


def test_value_residuals_of_weight_0_are_none():
    net, params = net_and_params("value_residual")
    assert "own_weight" not in params["layer_0"]["attention"]
    plain = without(params, "own_weight", "first_weight")
    expected = logits(build_net(config_of()), plain, tokens())
    neutral = with_values(params, own_weight=1.0, first_weight=0.0)
    np.testing.assert_allclose(logits(net, neutral, tokens()), expected, rtol=1e-5, atol=1e-5)
    # Of the first layer's values alone, the other layers' do not matter.
    first = with_values(params, own_weight=0.0, first_weight=1.0)
    other = first | {
        "layer_1": first["layer_1"] | {"attention": with_values(first["layer_1"]["attention"], value=9.0)}
    }
    np.testing.assert_array_equal(logits(net, first, tokens()), logits(net, other, tokens()))


@pytest.mark.parametrize("part", ["attention", "feed_forward"])
def test_a_normed_part_has_the_length_of_its_scale(part):
    net, params = net_and_params("peri_norm")
    params = params["layer_1"][part] | {"output_scale": jnp.full(32, 0.25)}
    x_BTD = jax.random.normal(jax.random.key(1), (2, T, 32))
    if part == "attention":
        mask = jnp.tril(jnp.ones((1, T, T), bool))
        inputs = (x_BTD, mask, jnp.arange(T)[None])
        out_BTD, _ = peri_norm.NormedAttention(net.config).apply({"params": params}, *inputs)
    else:
        out_BTD = peri_norm.NormedFeedForward(net.config).apply({"params": params}, x_BTD)
    np.testing.assert_allclose(jnp.sqrt((out_BTD**2).mean(-1)), 0.25, rtol=1e-3)


def test_gates_and_balance_by_hand():
    logits_BTE = jnp.log(jnp.array([[[1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 2.0, 3.0]]]))
    got = mixture_of_experts.gates(logits_BTE)[0]
    np.testing.assert_allclose(got, [[0, 0, 3 / 7, 4 / 7], [4 / 7, 0, 0, 3 / 7]], rtol=1e-6)
    # Shares of the four choices: 1/4, 0, 1/4, 1/2; mean probabilities 0.25, 0.15, 0.25, 0.35.
    expected = 4 * (0.25 * 0.25 + 0.25 * 0.25 + 0.5 * 0.35)
    np.testing.assert_allclose(mixture_of_experts.balance_loss(logits_BTE), expected, rtol=1e-6)


def test_equal_experts_are_one():
    """Gates sum to 1, so four equal experts are the base's feed-forward of half the width, whatever is chosen."""
    net, params = net_and_params("mixture_of_experts")
    plain = {}
    for name, value in params.items():
        if name.startswith("layer_"):
            expert = value["feed_forward"]["expert_0"]
            experts = {f"expert_{e}": expert for e in range(4)}
            params = params | {name: value | {"feed_forward": value["feed_forward"] | experts}}
            value = value | {"feed_forward": expert}
        plain[name] = value
    expected = logits(build_net(replace(config_of(), ff_width=16)), plain, tokens())
    np.testing.assert_allclose(logits(net, params, tokens()), expected, rtol=1e-5, atol=1e-5)


def test_the_second_last_layer_changes_no_logit():
    net, params = net_and_params("multi_token")
    expected = logits(build_net(config_of()), without(params, "ahead", "ahead_norm"), tokens())
    np.testing.assert_allclose(logits(net, params, tokens()), expected, rtol=1e-5, atol=1e-5)


def test_the_second_loss_is_of_the_token_after_the_next():
    batch = {"targets": jnp.array([[5, 6, 7]]), "weights": jnp.array([[1.0, 1.0, 0.0]])}
    ahead = multi_token.two_ahead(batch)
    assert ahead["targets"].tolist() == [[6, 7, 0]]
    assert ahead["weights"].tolist() == [[1.0, 0.0, 0.0]]
    net, params = net_and_params("multi_token")
    built = experiment_of("multi_token")
    batch = {"inputs": tokens(), "targets": jnp.roll(tokens(), -1, axis=1), "weights": jnp.ones((2, T))}
    objective = multi_token.objective(built)
    readout = apply_net(net, params, batch)
    total, nats = objective(readout, batch)
    log_p = jax.nn.log_softmax(readout._replace(x_BTD=readout.extra["ahead_BTD"]).logits())
    second = -jnp.take_along_axis(log_p[:, :-1], batch["targets"][:, 1:, None], axis=-1).sum()
    np.testing.assert_allclose(total, nats + 0.3 * second, rtol=1e-5)
