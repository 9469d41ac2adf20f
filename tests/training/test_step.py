"""The train step: accumulation, schedules, Muon, and losses that should never change by accident."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.compute.config import ComputeConfig
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training import step as step_module
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.step import (
    init_params,
    init_state,
    make_eval_step,
    make_train_step,
    objective_of,
)

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


def test_accumulation_weighs_tokens_not_parts():
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
def test_training_learns_one_batch_by_heart(optimizer):
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


def test_each_micro_batch_drops_other_numbers(monkeypatch):
    """A gradient that is the mask of its part: where all have the same mask, it is all or nothing."""

    def masked_sum(model, train, **how):
        def objective(params, part, key):
            mask = jax.random.bernoulli(key, 0.5, params["embedding"].shape)
            return jnp.sum(params["embedding"] * mask), jnp.float32(0)

        return objective

    monkeypatch.setattr(step_module, "objective_of", masked_sum)
    optimizer = OptimizerConfig(
        kind="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0, warmup_steps=1, schedule="linear"
    )
    train = replace(TRAIN, micro_batches=4)
    state = init_state(MODEL, optimizer, train)
    before = np.array(state.params["embedding"])
    after = make_train_step(MODEL, optimizer, train)(state, batch())[0].params["embedding"]
    shares = np.round((before - np.asarray(after)) * batch()["weights"].sum()).astype(int)
    counts = np.bincount(shares.ravel(), minlength=5) / shares.size
    np.testing.assert_allclose(counts, [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], atol=0.05)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("cross_entropy", ["plain", "chunked"])
@pytest.mark.parametrize("pad_id", [0, 7])
def test_padding_of_a_source_is_not_seen(pad_id, cross_entropy, num_classes):
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


def test_evaluation_counts_only_weighted_tokens():
    state = init_state(MODEL, OPTIMIZERS["muon"], TRAIN)
    evaluate = make_eval_step(MODEL)
    whole = evaluate(state.params, batch())
    padded = {k: np.concatenate([v, np.zeros_like(v)]) for k, v in batch().items()}
    padded = evaluate(state.params, padded)
    assert float(padded["tokens"]) == float(whole["tokens"]) == 8 * 16
    assert float(padded["nats"]) == pytest.approx(float(whole["nats"]), rel=1e-5)
