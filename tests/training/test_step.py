"""The train step: accumulation, schedules, Muon, and losses that should never change by accident."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import (
    forward,
    init_params,
    init_state,
    make_eval_step,
    make_label_step,
    make_train_step,
    objective_of,
    seeded_train_step,
)
from zerotollm.model.compute_config import ComputeConfig
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training import loss_scale
from zerotollm.training import step as step_module
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.optimizers import make_optimizer
from zerotollm.training.step import in_micro_batches, mean_gradients, plain_update, sum_gradients

MODEL = resolve(TransformerConfig(num_layers=1, width=32, num_heads=2), vocab_size=64, context=16)
TRAIN = TrainConfig(steps=60, seed=3)
OPTIMIZERS = {
    "muon": OptimizerConfig(),
    "adamw": OptimizerConfig(kind="adamw", learning_rate=1e-2, schedule="cosine"),
}
train_step = cache(make_train_step)
"""Compiled once for all tests."""
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def batch(seed=0, rows=8, length=16):
    tokens = np.random.default_rng(seed).integers(4, 64, (rows, length + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.ones((rows, length), np.int32),
        "weights": np.ones((rows, length), np.float32),
    }


def run(optimizer, train=TRAIN, model=MODEL, steps=4):
    state, step = init_state(model, optimizer, train), train_step(model, optimizer, train)
    history = []
    for i in range(steps):
        state, metrics = step(state, batch(i))
        history.append(jax.tree.map(float, metrics))
    return state, history


@each_optimizer
def test_accumulated_gradients_equal_the_large_batch(optimizer):
    whole, history = run(optimizer)
    parts, history_parts = run(optimizer, replace(TRAIN, micro_batches=4))
    for a, b in zip(history, history_parts, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole.params, parts.params)


def test_accumulation_weighs_tokens_not_micro_batches():
    """Parts with different numbers of counted tokens: the mean is over tokens."""
    uneven = batch()
    uneven["weights"][:3] = 0.0
    losses = []
    for parts in (1, 4):
        train = replace(TRAIN, micro_batches=parts)
        optimizer = OPTIMIZERS["adamw"]
        step = train_step(MODEL, optimizer, train)
        losses.append(float(step(init_state(MODEL, optimizer, train), uneven)[1]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@each_optimizer
def test_training_overfits_one_batch(optimizer):
    state, step = init_state(MODEL, optimizer, TRAIN), train_step(MODEL, optimizer, TRAIN)
    for _ in range(TRAIN.steps):
        state, metrics = step(state, batch())
    assert float(metrics["loss"]) < 1.0, "random tokens start at ln 60 = 4.1"


def test_dropout_differs_by_step_and_repeats_by_seed():
    model = replace(MODEL, dropout=0.3)
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.0)
    step = make_train_step(model, optimizer, TRAIN)

    def losses():
        state = init_state(model, optimizer, TRAIN)
        out = []
        for _ in range(3):  # the same batch and, at rate 0, the same parameters: only the masks differ
            state, metrics = step(state, batch())
            out.append(float(metrics["loss"]))
        return out

    assert len(set(losses())) == 3
    assert losses() == losses()


def test_each_micro_batch_has_different_dropout():
    """A gradient that is the mask of its part: where all have the same mask, it is all or nothing."""

    def masked_sum(params, state, part, seed, key):
        mask = jax.random.bernoulli(key, 0.5, params["embedding"].shape)
        return jnp.sum(params["embedding"] * mask), jnp.float32(0)

    optimizer = OptimizerConfig(
        kind="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0, warmup_steps=1, schedule="linear"
    )
    state = init_state(MODEL, optimizer, TRAIN)
    before = np.array(state.params["embedding"])
    gradients = mean_gradients(in_micro_batches(sum_gradients(masked_sum), 4))
    step = step_module.make_train_step(
        gradients, plain_update(make_optimizer(optimizer, TRAIN.steps, False), None)
    )
    after = step(state, batch(), 0)[0].params["embedding"]
    shares = np.round((before - np.asarray(after)) * batch()["weights"].sum()).astype(int)
    counts = np.bincount(shares.ravel(), minlength=5) / shares.size
    np.testing.assert_allclose(counts, [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], atol=0.05)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("cross_entropy", ["plain", "chunked"])
@pytest.mark.parametrize("pad_id", [0, 7])
def test_source_padding_has_no_effect(pad_id, cross_entropy, num_classes):
    """Whichever id pads, in training and in evaluation: a loss is that of the source without it."""
    pair = resolve(
        replace(MODEL, architecture="encoder-decoder", num_classes=num_classes), vocab_size=64, context=16
    )
    params = jax.jit(partial(init_params, pair, 0))()
    name = "inputs" if num_classes else "sources"
    padded = batch() | {"sources": batch(1)["inputs"]}
    padded[name] = padded[name].copy()
    padded[name][padded[name] == pad_id] = 8
    padded[name][:, 10:] = pad_id
    short = padded | {name: padded[name][:, :10]}
    if num_classes:
        for this in (padded, short):
            width = this[name].shape[1]
            this["targets"], this["weights"] = (
                this["targets"][:, :width] % 3,
                np.eye(16, dtype=np.float32)[:8, :width],
            )
    how = {"compute": ComputeConfig(cross_entropy=cross_entropy), "pad_id": pad_id}
    evaluate, objective = make_eval_step(pair, **how), jax.jit(objective_of(pair, TRAIN, **how))
    long, own = (
        (evaluate(params, this), objective(params, this, jax.random.key(0))) for this in (padded, short)
    )
    assert ("correct" in long[0]) == bool(num_classes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), long, own)


def test_metrics_of_a_step_are_of_its_batch_and_update():
    """One step of plain SGD, against gradients of the mean cross-entropy of all counted tokens."""
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.5, weight_decay=0.0, momentum=0.0, warmup_steps=4)
    uneven = batch()
    uneven["weights"][2, 5:] = 0.0
    state = init_state(MODEL, optimizer, TRAIN)
    before = jax.tree.map(np.array, state.params)

    def mean_loss(params):
        logits = forward(MODEL)(params, uneven["inputs"])
        log_p = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_p, uneven["targets"][..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * uneven["weights"]) / uneven["weights"].sum()

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss), compiler_options=QUICK)(before)
    step = quick_step(MODEL, optimizer, TRAIN, ComputeConfig())
    state, metrics = step(state, uneven)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {
            "loss": float(loss),
            "grad_norm": sum(float(jnp.sum(g * g)) for g in jax.tree.leaves(gradients)) ** 0.5,
            "param_norm": sum(float(jnp.sum(p * p)) for p in jax.tree.leaves(state.params)) ** 0.5,
            "learning_rate": 0.125,
        },
        rel=1e-4,
    )
    assert int(state.step) == 1
    moved = jax.tree.map(lambda p, g: p - 0.125 * g, before, gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), state.params, moved)
    nothing = batch() | {"weights": np.zeros((8, 16), np.float32)}
    state, metrics = step(state, nothing)
    assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0, (
        "no token, no loss, and no division by 0"
    )


def test_chunked_evaluation_equals_plain_with_capped_logits_too():
    model = replace(MODEL, logit_soft_cap=0.5)
    params = jax.jit(partial(init_params, model, 0), compiler_options=QUICK)()
    params["head"] *= 30
    plain, chunked = (
        make_eval_step(model, compute=ComputeConfig(cross_entropy=kind))(params, batch())
        for kind in ("plain", "chunked")
    )
    uncapped = make_eval_step(MODEL)(params, batch())
    assert abs(float(uncapped["nats"]) - float(plain["nats"])) > 1
    assert float(chunked["nats"]) == pytest.approx(float(plain["nats"]), rel=1e-5)
    assert float(chunked["tokens"]) == float(plain["tokens"]) == 128


@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_labels_are_predicted_at_the_requested_positions(architecture):
    """The one weighted place of each row; a row without one is padding."""
    model = resolve(replace(MODEL, architecture=architecture, num_classes=3), vocab_size=64, context=16)
    params = jax.jit(partial(init_params, model, 1), compiler_options=QUICK)()
    params = jax.tree.map(lambda x: x + 0.1, params)
    places = np.array([0, 3, 15, 7, 7, 1, 2, 0])
    asked = batch() | {"weights": np.eye(16, dtype=np.float32)[places]}
    asked["weights"][-1] = 0
    asked["targets"] = asked["targets"] % 3
    inputs = [asked["inputs"]] * 3 if model.encoder_layers else [asked["inputs"]]
    if model.encoder_layers:
        inputs[1] = asked["inputs"] != 0
    logits = np.asarray(forward(model)(params, *inputs))
    logits = np.broadcast_to(logits, (8, 16, 3))
    probabilities, labels, weights = make_label_step(model)(params, asked)
    rows = np.arange(8)
    expected = np.exp(logits[rows, places])
    np.testing.assert_allclose(probabilities, expected / expected.sum(-1, keepdims=True), rtol=1e-4)
    np.testing.assert_array_equal(labels, asked["targets"][rows, places])
    np.testing.assert_array_equal(weights, [1] * 7 + [0])
    sums = make_eval_step(model)(params, asked)
    right = np.asarray(probabilities).argmax(-1) == np.asarray(labels)
    assert float(sums["correct"]) == right[:7].sum()
    assert float(sums["tokens"]) == 7
    nats = -np.log(np.asarray(probabilities)[rows, labels])[:7].sum()
    assert float(sums["nats"]) == pytest.approx(nats, rel=1e-4)


def test_masked_attention_stays_inside_a_document():
    """In training and in evaluation: the loss of the second half is that of the half alone."""
    two = batch()
    two["segments"] = np.repeat([[1, 2]], 8, 0).repeat(8, 1).astype(np.int32)
    two["weights"][:, :8] = 0
    alone = {name: value[:, 8:] for name, value in two.items()}
    params = jax.jit(partial(init_params, MODEL, 0))()
    for masked in (True, False):
        evaluate = make_eval_step(MODEL, masked=masked)
        objective = jax.jit(objective_of(MODEL, TRAIN, masked=masked))
        whole, half = (
            (evaluate(params, this)["nats"], objective(params, this, jax.random.key(0))[1])
            for this in (two, alone)
        )
        same = np.isclose(whole, half, rtol=1e-5)
        assert (same == masked).all()


def test_evaluation_counts_only_weighted_tokens():
    state = init_state(MODEL, OPTIMIZERS["muon"], TRAIN)
    evaluate = make_eval_step(MODEL)
    whole = evaluate(state.params, batch())
    padded = {k: np.concatenate([v, np.zeros_like(v)]) for k, v in batch().items()}
    padded = evaluate(state.params, padded)
    assert float(padded["tokens"]) == float(whole["tokens"]) == 8 * 16
    assert float(padded["nats"]) == pytest.approx(float(whole["nats"]), rel=1e-5)


# --- float16


SHORT = TrainConfig(steps=8, seed=3, z_loss=1e-3, label_smoothing=0.1)
ADAMW = OptimizerConfig(kind="adamw", learning_rate=3e-3)
SGD = OptimizerConfig(kind="sgd", learning_rate=0.1)
QUICK = {"xla_backend_optimization_level": 0}
"""Of a compiler whose programs run once."""


def fresh_state(model, optimizer, train, compute):
    init = partial(init_state, model, optimizer, train, compute=compute)
    return jax.jit(init, compiler_options=QUICK)()


def quick_step(model, optimizer, train, compute):
    step = seeded_train_step(model, optimizer, train, compute=compute)
    return jax.jit(lambda state, batch: step(state, batch, train.seed), compiler_options=QUICK)


@pytest.mark.slow
def test_float16_with_accumulation_equals_without():
    compute = ComputeConfig(precision="float16")
    seen = []
    for parts in (1, 4):
        train = replace(SHORT, micro_batches=parts)
        step = quick_step(MODEL, SGD, train, compute)
        _, metrics = step(fresh_state(MODEL, SGD, train, compute), batch())
        seen.append(jax.tree.map(float, metrics))
    assert seen[0]["loss"] == pytest.approx(seen[1]["loss"], rel=2e-3)
    assert seen[0]["grad_norm"] == pytest.approx(seen[1]["grad_norm"], rel=2e-2)
    assert seen[0]["loss_scale"] == seen[1]["loss_scale"] == loss_scale.START


def test_an_overflow_skips_the_step_halves_the_scale_and_recovers():
    compute = ComputeConfig(precision="float16")
    train = replace(SHORT, steps=60)
    step = quick_step(MODEL, ADAMW, train, compute)
    fresh = fresh_state(MODEL, ADAMW, train, compute)
    high = fresh.loss_scale._replace(scale=jnp.float32(2.0**40))
    before = jax.tree.map(np.array, (fresh.params, fresh.opt_state))
    state, metrics = step(fresh._replace(loss_scale=high), batch())
    assert float(metrics["skipped_steps"]) == 1
    assert float(metrics["loss_scale"]) == 2.0**39
    assert float(metrics["grad_norm"]) == 0
    assert int(state.step) == 1, "the next step sees the next batch"
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))
    for i in range(40):
        state, metrics = step(state, batch(i))
    assert 1 < float(metrics["skipped_steps"]) < 39
    assert float(metrics["grad_norm"]) > 0
    assert float(optax_difference(before[0], state.params)) > 0

    # Where even scale 1 overflows, training has diverged, and the loop must see it.
    state = state._replace(
        loss_scale=state.loss_scale._replace(scale=jnp.float32(1.0)),
        params=jax.tree.map(lambda x: x * jnp.inf, state.params),
    )
    assert not np.isfinite(float(step(state, batch())[1]["grad_norm"]))


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_skipped_steps_do_not_delay_schedules(kind):
    """The first update after three skipped steps is at the rate of the fourth, which is the one that is logged. Adam's
    first update and Lion's are a sign; Muon trains the head by Adam."""
    compute = ComputeConfig(precision="float16")
    optimizer = OptimizerConfig(
        kind=kind, learning_rate=4e-3, adam_learning_rate=4e-3, weight_decay=0.0, warmup_steps=4
    )
    step = quick_step(MODEL, optimizer, SHORT, compute)
    state = fresh_state(MODEL, optimizer, SHORT, compute)
    start = state.loss_scale.scale
    for i in range(5):
        high = jnp.float32(2.0**60) if i < 3 else start + 0
        state = state._replace(loss_scale=state.loss_scale._replace(scale=high))
        before = np.array(state.params["head"])
        state, metrics = step(state, batch(i))
        assert float(metrics["skipped_steps"]) == min(i + 1, 3)
        rate = 4e-3 * min(i + 1, 4) / 4 * min(1, (8 - i) / 4)  # warmup, then decay over the second half
        assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-6)
        if i < 4:  # later ones are no signs any more
            moved = np.abs(np.asarray(state.params["head"]) - before).max()
            assert moved == pytest.approx(0.0 if i < 3 else rate, rel=1e-3)


def test_sgd_uses_the_logged_rate_in_every_step_not_skipped():
    compute = ComputeConfig(precision="float16")
    optimizer = replace(SGD, momentum=0.0, weight_decay=0.0, warmup_steps=1, schedule="linear")
    step = quick_step(MODEL, optimizer, SHORT, compute)
    state = fresh_state(MODEL, optimizer, SHORT, compute)
    for i in range(8):
        high = jnp.float32(2.0**60 if i in (0, 2, 3, 6) else 2.0**10)
        state = state._replace(loss_scale=state.loss_scale._replace(scale=high))
        before = jax.tree.map(np.array, state.params)
        state, metrics = step(state, batch(i))
        moved = sum(
            np.sum((np.asarray(b) - a) ** 2)
            for a, b in zip(*map(jax.tree.leaves, (before, state.params)), strict=True)
        )
        expected = float(metrics["learning_rate"] * metrics["grad_norm"])
        assert moved**0.5 == pytest.approx(expected, rel=1e-3, abs=1e-7), i
        assert float(metrics["learning_rate"]) == pytest.approx(0.1 * min(1, (8 - i) / 7), rel=1e-5)


def optax_difference(before, after):
    return sum(jnp.sum(jnp.abs(a - b)) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
