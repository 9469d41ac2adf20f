"""Precision, rematerialization, loops over layers and chunks: the same training, in less memory."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zerotollm.compute import loss_scale
from zerotollm.compute.config import PLAIN, Accelerator, ComputeConfig
from zerotollm.compute.config import resolve as resolve_compute
from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.stack import scan_layers
from zerotollm.training import step as step_module
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.optimizers import make_optimizer
from zerotollm.training.step import (
    batch_logits,
    init_params,
    init_state,
    make_eval_step,
    make_train_step,
    objective_of,
)

MODEL = resolve(
    TransformerConfig(num_layers=2, width=32, num_heads=2, num_kv_heads=1, logit_soft_cap=15.0),
    vocab_size=64,
    context=16,
)
TRAIN = TrainConfig(steps=8, seed=3, z_loss=1e-3, label_smoothing=0.1)
ADAMW = OptimizerConfig(kind="adamw", learning_rate=3e-3)
SGD = OptimizerConfig(kind="sgd", learning_rate=0.1)


PAIR = replace(
    MODEL,
    architecture="encoder-decoder",
    encoder_layers=1,
    num_layers=2,
    biases="everywhere",
    norm_position="post",
)
"""With a bias of the head, and layers of the encoder that are not as many as the decoder's."""
LABELS = replace(PAIR, num_classes=3, biases="none")


def batch(seed=0, rows=8, length=16):
    draw = np.random.default_rng(seed)
    tokens = draw.integers(4, 64, (rows, length + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": draw.integers(0, 2, (rows, length)).cumsum(1).astype(np.int32),
        "sources": tokens[:, :0:-1] * (np.arange(length) < length - 4),  # the last four are padding
        "weights": (draw.random((rows, length)) < 0.9).astype(np.float32),
    }


QUICK = {"xla_backend_optimization_level": 0}
"""Of a compiler whose programs run once."""


def fresh_state(model, optimizer, train, compute):
    init = partial(init_state, model, optimizer, train, compute=compute)
    return jax.jit(init, compiler_options=QUICK)()


def gradients(compute, model=MODEL, masked=True):
    """Summed objective, summed cross-entropy and gradients of one batch."""
    params = jax.jit(partial(init_params, model, 0), compiler_options=QUICK)()
    objective = objective_of(model, TRAIN, masked=masked, compute=compute)
    both = jax.value_and_grad(objective, has_aux=True)
    of = batch()
    if model.num_classes:
        of["targets"] = of["targets"] % model.num_classes
    return jax.jit(both, compiler_options=QUICK)(params, of, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [PAIR, replace(PAIR, biases="none", tie_embeddings=True), LABELS], ids=range(3)
)
@pytest.mark.parametrize(
    "change",
    [
        {"remat": "dots"},
        {"scan_layers": True},
        {"cross_entropy": "chunked"},
        {"cross_entropy": "chunked", "remat": "full"},
    ],
    ids=str,
)
def test_nothing_but_rounding_changes_of_pairs(change, model):
    ours, plain = (gradients(replace(PLAIN, **how), model=model) for how in (change, {}))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, plain)


def test_all_at_once_changes_nothing_but_rounding_of_pairs():
    lean = replace(PLAIN, cross_entropy="chunked", remat="full", scan_layers=True)
    ours, plain = (gradients(how, model=PAIR) for how in (lean, PLAIN))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, plain)


@pytest.fixture(scope="module")
def plain():
    return gradients(ComputeConfig(attention="plain", cross_entropy="plain"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"remat": "dots"},
        {"remat": "full"},
        {"scan_layers": True},
        {"attention": "chunked", "cross_entropy": "chunked"},
        {"attention": "chunked", "cross_entropy": "chunked", "remat": "dots", "scan_layers": True},
    ],
    ids=str,
)
def test_nothing_but_rounding_changes(change, plain):
    ours = gradients(ComputeConfig(**({"attention": "plain", "cross_entropy": "plain"} | change)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "shape"), [("dots", MODEL), ("full", MODEL), ("full", PAIR)], ids=str)
def test_remat_without_a_loop_changes_nothing_and_draws_the_same_dropout(remat, shape):
    """As on a GPU: on a CPU `resolve` makes a loop of it."""
    model = replace(shape, dropout=0.3)

    def loss(compute, params):
        logits = batch_logits(
            model, params, batch(), masked=False, dropout_key=jax.random.key(1), compute=compute, pad_id=0
        )
        return jnp.sum(jnp.square(logits))

    params = jax.jit(partial(init_params, model, 0), compiler_options=QUICK)()
    ours, plain = (
        jax.jit(jax.grad(partial(loss, compute)), compiler_options=QUICK)(params)
        for compute in (replace(PLAIN, remat=remat), PLAIN)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, plain)


@pytest.mark.parametrize("shape", [MODEL, replace(PAIR, encoder_layers=4)], ids=["decoder", "pairs"])
def test_remat_saves_memory_even_on_a_cpu(shape):
    """XLA's CPU backend undoes rematerialization outside of loops."""
    model = replace(shape, num_layers=4)

    def temporary(remat):
        objective = objective_of(model, TRAIN, compute=ComputeConfig(remat=remat, scan_layers=True))
        gradient = jax.jit(jax.grad(lambda *args: objective(*args)[0]))
        params = jax.eval_shape(partial(init_params, model, 0))
        compiled = gradient.lower(params, batch(rows=64), jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("full") < 0.6 * temporary("none")


def test_a_scan_drops_other_numbers_in_each_layer():
    """With one set of weights for both layers, and layers that add their input's image, equal masks would show."""
    drawn = []

    def block(params, x, key):
        drawn.append(key)
        return x + jax.random.bernoulli(key, 0.5, x.shape) * params["weight"][None, None]

    layers = [{"weight": jnp.ones(64) * 2**i} for i in range(3)]
    out = scan_layers(block, layers, jnp.zeros((1, 1, 64)), key=jax.random.key(0), remat="none")
    assert len(set(np.asarray(out).ravel().tolist())) > 2, "equal masks leave 0 and 7 only"


def test_the_program_of_a_scan_hardly_grows_with_depth():
    def size(layers, scan):
        model = replace(MODEL, num_layers=layers)
        compute = ComputeConfig(scan_layers=scan)
        params = jax.eval_shape(lambda: init_state(model, ADAMW, TRAIN, compute=compute)).params
        return len(make_eval_step(model, compute=compute).lower(params, batch()).as_text())

    assert size(12, True) - size(6, True) < 0.3 * (size(12, False) - size(6, False))


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, PAIR], ids=["decoder", "pairs"])
def test_half_precision_learns_a_batch_by_heart(model):
    train = TrainConfig(steps=60)
    compute = ComputeConfig(precision="float16", attention="chunked", cross_entropy="chunked")
    optimizer = replace(ADAMW, learning_rate=1e-2)
    state = init_state(model, optimizer, train, compute=compute)
    step = make_train_step(model, optimizer, train, compute=compute)
    for _ in range(60):
        state, metrics = step(state, batch())
    assert float(metrics["loss"]) < 1.0, "random tokens start at ln 60 = 4.1"
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("model", [MODEL, PAIR], ids=["decoder", "pairs"])
def test_half_precision_products_are_in_half_precision(model):
    params = jax.eval_shape(partial(init_params, model, 0))
    half = ComputeConfig(precision="bfloat16")
    text = make_eval_step(model, compute=half).lower(params, batch()).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("bf16" in line.split(":")[-1] for line in products)


@pytest.mark.slow
def test_float16_with_accumulation_equals_without():
    compute = ComputeConfig(precision="float16")
    model, seen = replace(MODEL, num_layers=1), []
    for parts in (1, 4):
        train = replace(TRAIN, micro_batches=parts)
        step = make_train_step(model, SGD, train, compute=compute)
        _, metrics = step(fresh_state(model, SGD, train, compute), batch())
        seen.append(jax.tree.map(float, metrics))
    assert seen[0]["loss"] == pytest.approx(seen[1]["loss"], rel=2e-3)
    assert seen[0]["grad_norm"] == pytest.approx(seen[1]["grad_norm"], rel=2e-2)
    assert seen[0]["loss_scale"] == seen[1]["loss_scale"] == loss_scale.START


def test_an_overflow_skips_the_step_halves_the_scale_and_recovers():
    compute, model = ComputeConfig(precision="float16"), replace(MODEL, num_layers=1)
    train = replace(TRAIN, steps=60)
    step = make_train_step(model, ADAMW, train, compute=compute)
    fresh = fresh_state(model, ADAMW, train, compute)
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
    compute, model = ComputeConfig(precision="float16"), replace(MODEL, num_layers=1)
    optimizer = OptimizerConfig(
        kind=kind, learning_rate=4e-3, adam_learning_rate=4e-3, weight_decay=0.0, warmup_steps=4
    )
    step = make_train_step(model, optimizer, TRAIN, compute=compute)
    state = fresh_state(model, optimizer, TRAIN, compute)
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
    compute, model = ComputeConfig(precision="float16"), replace(MODEL, num_layers=1)
    optimizer = replace(SGD, momentum=0.0, weight_decay=0.0, warmup_steps=1, schedule="linear")
    step = make_train_step(model, optimizer, TRAIN, compute=compute)
    state = fresh_state(model, optimizer, TRAIN, compute)
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


def test_the_scale_grows_after_an_interval_up_to_its_cap():
    state = loss_scale.init_loss_scale()._replace(good_steps=jnp.int32(loss_scale.GROWTH_INTERVAL - 1))
    grown = loss_scale.updated(state, jnp.bool_(True))
    assert float(grown.scale) == 2 * loss_scale.START
    assert int(grown.good_steps) == 0
    top = state._replace(scale=jnp.float32(loss_scale.CAP))
    assert float(loss_scale.updated(top, jnp.bool_(True)).scale) == loss_scale.CAP
    low = state._replace(scale=jnp.float32(1.0))
    assert float(loss_scale.updated(low, jnp.bool_(False)).scale) == loss_scale.FLOOR


@pytest.mark.parametrize("moments", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["muon", "adamw", "lion", "sgd"])
def test_moments_in_16_bits_hardly_change_updates(kind, moments):
    keys = jax.random.split(jax.random.key(0), 9)
    params = {"up": jax.random.normal(keys[0], (8, 8)), "head": jax.random.normal(keys[1], (8, 16))}

    def updates(dtype):
        rule = make_optimizer(OptimizerConfig(kind=kind, moments=dtype, weight_decay=0.0, warmup_steps=1), 8)
        state, update = rule.init(params), jax.jit(rule.update)
        for key in keys[2:]:  # gradients as small as in training: their squares are zero in float16
            gradient = jax.tree.map(lambda x, key=key: 1e-5 * (0.3 + jax.random.normal(key, x.shape)), params)
            last, state = update(gradient, state, params)
        return last, state

    (exact, _), (short, state) = updates("float32"), updates(moments)
    for ours, theirs in zip(jax.tree.leaves(short), jax.tree.leaves(exact), strict=True):
        assert float(jnp.linalg.norm(ours - theirs)) < (0.3 if kind == "lion" else 0.05) * float(
            jnp.linalg.norm(theirs)
        )
    kept = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert kept == {moments}


TURING, AMPERE = Accelerator("gpu", 7.5, "RTX 2080"), Accelerator("gpu", 8.6, "RTX 3090")
CPU = Accelerator("cpu")
SHAPE = {"rows": 4, "context": 1024, "vocab_size": 50304, "masked": False}


@pytest.mark.parametrize(
    ("accelerator", "precision", "attention"),
    [
        (CPU, "float32", "chunked"),
        (TURING, "float16", "chunked"),
        (Accelerator("gpu", 7.0), "float16", "chunked"),
        (AMPERE, "bfloat16", "cudnn"),
        (Accelerator("tpu"), "bfloat16", "chunked"),
    ],
    ids=str,
)
def test_auto_follows_the_device(accelerator, precision, attention):
    how = resolve_compute(ComputeConfig(), accelerator, **SHAPE)
    assert (how.precision, how.attention, how.cross_entropy) == (precision, attention, "chunked")
    assert resolve_compute(how, accelerator, **SHAPE) == how
    lean = resolve_compute(ComputeConfig(remat="dots"), accelerator, **SHAPE)
    assert lean.scan_layers == (accelerator == CPU)
    small = resolve_compute(ComputeConfig(), CPU, rows=4, context=256, vocab_size=4096, masked=True)
    assert (small.attention, small.cross_entropy) == ("plain", "plain")
    assert resolve_compute(ComputeConfig(), AMPERE, **(SHAPE | {"masked": True})).attention == "chunked"


@pytest.mark.parametrize(
    ("accelerator", "masked", "says"),
    [(TURING, False, "RTX 2080"), (AMPERE, True, "inside no document"), (CPU, False, "this is cpu")],
)
def test_cudnn_is_refused_where_it_is_not(accelerator, masked, says):
    with pytest.raises(UsageError, match=says):
        resolve_compute(ComputeConfig(attention="cudnn"), accelerator, **(SHAPE | {"masked": masked}))
    with pytest.raises(UsageError, match="cudnn"):
        resolve_compute(ComputeConfig(attention="cudnn"), AMPERE, **SHAPE, even=False)


def test_the_step_asks_the_device(monkeypatch):
    monkeypatch.setattr(step_module, "this_accelerator", lambda: TURING)
    init = partial(init_state, MODEL, ADAMW, TRAIN)
    assert jax.eval_shape(init).loss_scale is not None
    assert jax.eval_shape(partial(init, compute=ComputeConfig(precision="bfloat16"))).loss_scale is None


def test_pairs_are_in_float32_unless_half_precision_is_asked_for(monkeypatch):
    monkeypatch.setattr(step_module, "this_accelerator", lambda: TURING)
    auto, half = ComputeConfig(), ComputeConfig(precision="float16")
    states = [jax.eval_shape(partial(init_state, PAIR, ADAMW, TRAIN, compute=how)) for how in (auto, half)]
    assert [state.loss_scale is None for state in states] == [True, False]
    resolved = [step_module.resolved_for(how, PAIR, batch(), masked=False) for how in (auto, half)]
    assert [(how.precision, how.attention) for how in resolved] == [
        ("float32", "plain"),
        ("float16", "plain"),
    ]
