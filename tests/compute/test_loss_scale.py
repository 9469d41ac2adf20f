"""The loss scale of float16: what it does after an overflow, and after none."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.compute import loss_scale
from zerotollm.compute.config import ComputeConfig
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.step import init_state, seeded_train_step

MODEL = resolve(TransformerConfig(num_layers=1, width=32, num_heads=2), vocab_size=64, context=16)
TRAIN = TrainConfig(steps=8, seed=3, z_loss=1e-3, label_smoothing=0.1)
ADAMW = OptimizerConfig(kind="adamw", learning_rate=3e-3)
SGD = OptimizerConfig(kind="sgd", learning_rate=0.1)


def batch(seed=0, rows=8, length=16):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(4, 64, (rows, length + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": draw.integers(0, 2, (rows, length)).cumsum(1).astype(np.int32),
        "weights": (draw.random((rows, length)) < 0.9).astype(np.float32),
    }


QUICK = {"xla_backend_optimization_level": 0}
"""Of a compiler whose programs run once."""


def train_step(model, optimizer, train, compute):
    step = seeded_train_step(model, optimizer, train, compute=compute)
    return jax.jit(lambda state, batch: step(state, batch, train.seed), compiler_options=QUICK)


def fresh_state(model, optimizer, train, compute):
    init = partial(init_state, model, optimizer, train, compute=compute)
    return jax.jit(init, compiler_options=QUICK)()


@pytest.mark.slow
def test_float16_with_accumulation_equals_without():
    compute = ComputeConfig(precision="float16")
    seen = []
    for parts in (1, 4):
        train = replace(TRAIN, micro_batches=parts)
        step = train_step(MODEL, SGD, train, compute)
        _, metrics = step(fresh_state(MODEL, SGD, train, compute), batch())
        seen.append(jax.tree.map(float, metrics))
    assert seen[0]["loss"] == pytest.approx(seen[1]["loss"], rel=2e-3)
    assert seen[0]["grad_norm"] == pytest.approx(seen[1]["grad_norm"], rel=2e-2)
    assert seen[0]["loss_scale"] == seen[1]["loss_scale"] == loss_scale.START


def test_an_overflow_skips_the_step_halves_the_scale_and_recovers():
    compute = ComputeConfig(precision="float16")
    train = replace(TRAIN, steps=60)
    step = train_step(MODEL, ADAMW, train, compute)
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
def test_skipped_steps_hold_no_schedule_up(kind):
    """The first update after three skipped steps is at the rate of the fourth, which is the one that is logged. Adam's
    first update and Lion's are a sign; Muon trains the head by Adam."""
    compute = ComputeConfig(precision="float16")
    optimizer = OptimizerConfig(
        kind=kind, learning_rate=4e-3, adam_learning_rate=4e-3, weight_decay=0.0, warmup_steps=4
    )
    step = train_step(MODEL, optimizer, TRAIN, compute)
    state = fresh_state(MODEL, optimizer, TRAIN, compute)
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


def test_sgd_moves_by_the_logged_rate_in_every_step_that_is_not_skipped():
    compute = ComputeConfig(precision="float16")
    optimizer = replace(SGD, momentum=0.0, weight_decay=0.0, warmup_steps=1, schedule="linear")
    step = train_step(MODEL, optimizer, TRAIN, compute)
    state = fresh_state(MODEL, optimizer, TRAIN, compute)
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


def test_the_scale_counts_good_steps_doubles_and_halves():
    """The numbers of a run with one overflow, by hand."""
    state = loss_scale.init_loss_scale()
    assert (float(state.scale), int(state.good_steps), int(state.skipped)) == (2.0**16, 0, 0)
    interval = loss_scale.GROWTH_INTERVAL
    for good, finite, after in (
        (0, True, (2.0**16, 1, 0)),
        (interval - 2, True, (2.0**16, interval - 1, 0)),
        (interval - 1, True, (2.0**17, 0, 0)),
        (interval - 1, False, (2.0**15, 0, 1)),
        (3, False, (2.0**15, 0, 1)),
    ):
        new = loss_scale.updated(state._replace(good_steps=jnp.int32(good)), jnp.bool_(finite))
        assert (float(new.scale), int(new.good_steps), int(new.skipped)) == after, (good, finite)
    again = loss_scale.updated(new, jnp.bool_(False))
    assert (float(again.scale), int(again.skipped)) == (2.0**14, 2)
    top = state._replace(scale=jnp.float32(loss_scale.CAP / 2), good_steps=jnp.int32(interval - 1))
    assert float(loss_scale.updated(top, jnp.bool_(True)).scale) == loss_scale.CAP == 2.0**24


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_is_enough(bad):
    tree = {"a": jnp.ones((2, 3)), "b": (jnp.zeros(4), jnp.float16(60000.0))}
    assert bool(loss_scale.all_finite(tree))
    for harm in ({"a": tree["a"].at[1, 2].set(bad)}, {"b": (tree["b"][0].at[0].set(bad), tree["b"][1])}):
        assert not bool(loss_scale.all_finite(tree | harm))
    new, old = {"x": jnp.ones(3), "n": jnp.int32(2)}, {"x": jnp.zeros(3), "n": jnp.int32(1)}
    for finite, expected in ((True, new), (False, old)):
        found = loss_scale.chosen(jnp.bool_(finite), new, old)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_scale_grows_after_an_interval_up_to_its_cap():
    state = loss_scale.init_loss_scale()._replace(good_steps=jnp.int32(loss_scale.GROWTH_INTERVAL - 1))
    grown = loss_scale.updated(state, jnp.bool_(True))
    assert float(grown.scale) == 2 * loss_scale.START
    assert int(grown.good_steps) == 0
    top = state._replace(scale=jnp.float32(loss_scale.CAP))
    assert float(loss_scale.updated(top, jnp.bool_(True)).scale) == loss_scale.CAP
    low = state._replace(scale=jnp.float32(1.0))
    assert float(loss_scale.updated(low, jnp.bool_(False)).scale) == loss_scale.FLOOR
