"""Precision, rematerialization, loops over layers and chunks: the same training, in less memory."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import init_params, init_state, make_eval_step, make_train_step, objective_of
from zerotollm import components
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.model.build import build_net
from zerotollm.model.compute_config import PLAIN, Accelerator, ComputeConfig
from zerotollm.model.compute_config import resolve as resolve_compute
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.transformer import Transformer
from zerotollm.training.config import OptimizerConfig, TrainConfig

MODEL = resolve(
    TransformerConfig(num_layers=2, width=32, num_heads=2, num_kv_heads=1, logit_soft_cap=15.0, nope_every=2),
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
    nope_every=0,
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
def test_pairs_change_only_by_rounding(change, model):
    ours, plain = (gradients(replace(PLAIN, **how), model=model) for how in (change, {}))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, plain)


def test_all_options_together_change_pairs_only_by_rounding():
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
def test_results_change_only_by_rounding(change, plain):
    ours = gradients(ComputeConfig(**({"attention": "plain", "cross_entropy": "plain"} | change)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "shape"), [("dots", MODEL), ("full", MODEL), ("full", PAIR)], ids=str)
def test_remat_without_scan_changes_nothing_and_draws_the_same_dropout(remat, shape):
    """As on a GPU: on a CPU `resolve` makes a loop of it."""
    model = replace(shape, dropout=0.3)

    def loss(compute, params):
        inputs = dict(batch())
        if model.encoder_layers:
            inputs["source_mask"] = inputs["sources"] != 0
        else:
            del inputs["segments"]
        rngs = {"dropout": jax.random.key(1)}
        net = build_net(model, compute)
        readout = net.apply({"params": params}, inputs, deterministic=False, rngs=rngs)
        return jnp.sum(jnp.square(readout.logits()))

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


def test_scan_drops_different_activations_in_each_layer():
    """With one set of weights for both layers, and layers that add their input's image, equal masks would show."""

    class Drop(nn.Module):
        config: TransformerConfig

        @nn.compact
        def __call__(self, x_BTD, mask_BTS, positions_BT, *, deterministic, **others):
            weight_D = self.param("weight", nn.initializers.ones, (x_BTD.shape[-1],))
            if deterministic:
                return x_BTD, ()
            mask_BTD = jax.random.bernoulli(self.make_rng("dropout"), 0.5, x_BTD.shape)
            return x_BTD + mask_BTD * weight_D[None, None], ()

    model = replace(MODEL, num_layers=3, width=64, norm_position="post", dropout=0.5, position="none")
    net, inputs = (
        Transformer(model, replace(PLAIN, scan_layers=True), Drop),
        {"inputs": np.zeros((1, 1), int)},
    )
    params = net.init(jax.random.key(0), inputs)["params"]
    params["embedding"] *= 0.0
    for i in range(3):
        params[f"layer_{i}"]["weight"] *= 2.0**i
    rngs = {"dropout": jax.random.key(0)}
    out_BTD = net.apply({"params": params}, inputs, deterministic=False, rngs=rngs).x_BTD
    assert len(set(np.asarray(out_BTD).ravel().tolist())) > 4, (
        "equal masks leave 0 and 7 only, and the dropped"
    )


def test_a_scanned_program_hardly_grows_with_depth():
    def size(layers, scan):
        model = replace(MODEL, num_layers=layers)
        compute = ComputeConfig(scan_layers=scan)
        params = jax.eval_shape(lambda: init_state(model, ADAMW, TRAIN, compute=compute)).params
        return len(make_eval_step(model, compute=compute).lower(params, batch()).as_text())

    assert size(12, True) - size(6, True) < 0.3 * (size(12, False) - size(6, False))


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, PAIR], ids=["decoder", "pairs"])
def test_half_precision_overfits_one_batch(model):
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
    [(TURING, False, "RTX 2080"), (AMPERE, True, "within a document"), (CPU, False, "this is cpu")],
)
def test_cudnn_is_refused_if_unavailable(accelerator, masked, says):
    with pytest.raises(UsageError, match=says):
        resolve_compute(ComputeConfig(attention="cudnn"), accelerator, **(SHAPE | {"masked": masked}))
    with pytest.raises(UsageError, match="cudnn"):
        resolve_compute(ComputeConfig(attention="cudnn"), AMPERE, **SHAPE, even=False)


def test_auto_uses_the_current_device(monkeypatch):
    monkeypatch.setattr(components, "this_accelerator", lambda: TURING)
    init = partial(init_state, MODEL, ADAMW, TRAIN)
    assert jax.eval_shape(init).loss_scale is not None
    assert jax.eval_shape(partial(init, compute=ComputeConfig(precision="bfloat16"))).loss_scale is None


def test_pairs_are_in_float32_unless_half_precision_is_requested(monkeypatch):
    monkeypatch.setattr(components, "this_accelerator", lambda: TURING)
    auto, half = ComputeConfig(), ComputeConfig(precision="float16")
    states = [jax.eval_shape(partial(init_state, PAIR, ADAMW, TRAIN, compute=how)) for how in (auto, half)]
    assert [state.loss_scale is None for state in states] == [True, False]
    resolved = [
        components.computed(Experiment(model=PAIR, compute=how), batch()).compute for how in (auto, half)
    ]
    assert [(how.precision, how.attention) for how in resolved] == [
        ("float32", "plain"),
        ("float16", "plain"),
    ]
