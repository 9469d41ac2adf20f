"""Two steps of every update rule, on the whole tree, on parts of it and on adapters, against arithmetic in NumPy;
schedules; and Muon's blocks: what is orthogonalized together, and that the size of an update does not depend on it."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.functions import init_params, init_state, make_train_step
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training import optimizers
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.lora import flatten_params, unflatten_params
from zerotollm.training.optimizers import (
    POLAR_EXPRESS,
    learning_rate_schedule,
    make_optimizer,
    muon_directions,
    orthogonalize,
    parameter_groups,
)

SIZE = TransformerConfig(num_layers=1, width=32, num_heads=2, position="learned", token_shift=1)
MODEL = resolve(SIZE, vocab_size=64, context=16)
STEPS = 8
RATES = {"hidden": 0.03, "rest": 0.02, "embedding": 0.05}
PARTS = {
    "all": {},
    "embedding": {"trainable": "^embedding"},
    "head": {"trainable": "head|final_norm"},
    "feed forward": {"trainable": "feed_forward"},
    "adapters": {"lora_rank": 2},
}
CONFIG = OptimizerConfig(
    learning_rate=RATES["hidden"],
    adam_learning_rate=RATES["rest"],
    embedding_learning_rate=RATES["embedding"],
    warmup_steps=4,
    weight_decay=0.3,
    momentum=0.8,
    iterations=2,
    block=16,
    beta1=0.7,
    beta2=0.9,
    epsilon=1e-3,
)
KINDS = ("muon", "adamw", "lion", "adafactor", "sgd")
# Muon has groups; the others treat every parameter alike, so one of them meets every part. Clipping knows no parts.
CASES = [
    *(("muon", part, 0.0) for part in PARTS),
    *(("adamw", part, 0.0) for part in PARTS),
    *((kind, part, 0.0) for kind in ("lion", "adafactor", "sgd") for part in ("all", "adapters")),
    *((kind, "all", 0.5) for kind in KINDS),
]


def group_of(path: str, size: int) -> str:
    names = path.split("/")
    if {"embedding", "positions"} & set(names):
        return "embedding"
    return "hidden" if size == 2 and any(name.startswith("layer_") for name in names) else "rest"


def adam(m, g, t):
    first = CONFIG.beta1 * m.get("first", 0) + (1 - CONFIG.beta1) * g
    second = CONFIG.beta2 * m.get("second", 0) + (1 - CONFIG.beta2) * g * g
    m |= {"first": first, "second": second}
    corrected = np.sqrt(second / (1 - CONFIG.beta2**t))
    return first / (1 - CONFIG.beta1**t) / (corrected + CONFIG.epsilon)


def lion(m, g, t):
    before = m.get("first", np.zeros_like(g))
    m["first"] = CONFIG.beta2 * before + (1 - CONFIG.beta2) * g
    return np.sign(CONFIG.beta1 * before + (1 - CONFIG.beta1) * g)


def nesterov(m, g, t):
    m["trace"] = g + CONFIG.momentum * m.get("trace", 0)
    return g + CONFIG.momentum * m["trace"]


def adafactor(m, g, t):
    """Algorithm 4 of arXiv:1804.04235, with the decay 1 - t^-0.8 of section 7.2."""
    decay = 1 - t**-0.8
    if g.ndim == 2:
        m["row"] = decay * m.get("row", 0) + (1 - decay) * (g * g).mean(1)
        m["column"] = decay * m.get("column", 0) + (1 - decay) * (g * g).mean(0)
        second = np.outer(m["row"], m["column"]) / m["row"].mean()
    else:
        second = m["second"] = decay * m.get("second", 0) + (1 - decay) * g * g
    update = g / np.sqrt(second)
    return update / max(1, np.sqrt((update**2).mean()))


def muon(m, g, t, writes):
    """The momentum in blocks of features, each made orthogonal; see `muon_directions`."""
    rows = nesterov(m, g, t) if writes else nesterov(m, g, t).T
    block = CONFIG.block if len(rows) % CONFIG.block == 0 else len(rows)
    done = []
    for start in range(0, len(rows), block):
        x = rows[start : start + block]
        u, s, v = np.linalg.svd(x, full_matrices=False)
        s = s / (1.01 * np.linalg.norm(x) + 1e-7)
        for a, b, c in POLAR_EXPRESS[: CONFIG.iterations]:
            s = a * s + b * s**3 + c * s**5
        done.append(u * s @ v)
    X, Y = g.shape
    norm = np.sqrt(min(X, Y) * max(1, Y / X) / (len(done) * min(block, rows.shape[1])))
    return (np.concatenate(done) if writes else np.concatenate(done).T) * norm


RULES = {"adamw": adam, "lion": lion, "adafactor": adafactor, "sgd": nesterov}


@cache
def trained_part(part: str):
    train = TrainConfig(steps=STEPS, start_from="base", **PARTS[part])
    state = jax.jit(partial(init_state, MODEL, OptimizerConfig(kind="sgd"), train))()
    return train, {path: np.array(leaf, np.float32) for path, leaf in flatten_params(state.params)}


@pytest.mark.parametrize(("kind", "part", "clip"), CASES)
def test_two_steps_match_numpy(kind, part, clip):
    config = OptimizerConfig(**(vars(CONFIG) | {"kind": kind, "clip_norm": clip}))
    _, params = trained_part(part)
    tx, draw = make_optimizer(config, STEPS, tied=False), np.random.default_rng(0)
    state, update = jax.jit(tx.init)(unflatten_params(params)), jax.jit(tx.update)
    memory = {path: {} for path in params}
    ours, expected = dict(params), {path: leaf.astype(np.float64) for path, leaf in params.items()}
    for t in (1, 2):
        gradients = {path: draw.normal(size=x.shape).astype(np.float32) for path, x in params.items()}
        updates, state = update(unflatten_params(gradients), state, unflatten_params(ours))
        ours = {path: ours[path] + np.asarray(step) for path, step in flatten_params(updates)}
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
        for path, g in gradients.items():
            g = g.astype(np.float64) * (min(1, clip / norm) if clip else 1)
            group = group_of(path, g.ndim) if kind == "muon" else "hidden"
            if kind != "muon":
                step = RULES[kind](memory[path], g, t)
            elif group == "hidden":
                step = muon(memory[path], g, t, path.split("/")[-1] in ("output", "down"))
            else:
                step = adam(memory[path], g, t)
            decays = group == "hidden" and g.ndim == 2
            step = step + (CONFIG.weight_decay * expected[path] if decays else 0)
            expected[path] = expected[path] - RATES[group] * t / 4 * step  # the warmup
    for path, array in ours.items():
        np.testing.assert_allclose(array, expected[path], rtol=2e-3, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_trained_alone_keeps_its_rate(tied):
    """Adam's first update is a sign: every number of a row that was seen moves by the rate."""
    model = resolve(TransformerConfig(**(vars(SIZE) | {"tie_embeddings": tied})), vocab_size=64, context=16)
    optimizer = OptimizerConfig(**(vars(CONFIG) | {"warmup_steps": 1, "epsilon": 1e-12}))
    train = TrainConfig(steps=STEPS, start_from="base", trainable="^embedding")
    state = init_state(model, optimizer, train)
    before = np.array(state.params["own"]["embedding"])
    tokens = np.random.default_rng(0).integers(4, 64, (4, 17)).astype(np.int32)
    ones = np.ones((4, 16), np.float32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones}
    batch["segments"] = ones.astype(np.int32)
    state, metrics = make_train_step(model, optimizer, train)(state, batch)
    moved = np.abs(np.asarray(state.params["own"]["embedding"]) - before).max()
    assert moved == pytest.approx(float(metrics["learning_rate"]), rel=1e-3), "what is logged is applied"
    assert moved == pytest.approx(RATES["rest" if tied else "embedding"], rel=1e-3)


@pytest.mark.parametrize(
    ("iterations", "least", "most"),
    [(1, 0.008, 1.992), (2, 0.034, 1.966), (3, 0.134, 1.866), (4, 0.43, 1.561), (5, 0.87, 1.124)],
)
def test_singular_values_are_within_the_documented_bounds(iterations, least, most):
    """From arithmetic, for all that a matrix may have, and from matrices that have them."""
    s = np.linspace(0, 1, 200_001) / 1.01
    x = s.copy()
    for a, b, c in POLAR_EXPRESS[:iterations]:
        x = a * x + b * x**3 + c * x**5
    assert most - 1e-3 < x.max() < most
    assert least < x[s >= 1e-3].min() < 1.05 * least
    assert x.max() > 1.1, "the coefficients have no safety factor after all: say so where they stand"
    values = np.array([1.0, *s[1::20000]])
    values /= np.linalg.norm(values)
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(values), len(values))))
    found = np.linalg.svd(orthogonalize((turned * values).astype(np.float32), iterations), compute_uv=False)
    reached = values / 1.01
    for a, b, c in POLAR_EXPRESS[:iterations]:
        reached = a * reached + b * reached**3 + c * reached**5
    np.testing.assert_allclose(found, np.sort(reached)[::-1], rtol=1e-3, atol=1e-4)
    assert found.max() < most


def test_each_group_follows_the_schedule_of_its_rate():
    for name, rate in RATES.items():
        schedule = learning_rate_schedule(CONFIG, rate, STEPS)
        assert [float(schedule(t)) for t in (0, 3, 6)] == pytest.approx([rate / 4, rate, rate / 2]), name


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16), (3, 16, 24)])
def test_orthogonalize_brings_singular_values_to_one(shape):
    matrix = jax.random.normal(jax.random.key(0), shape)
    close = orthogonalize(matrix, 5)
    assert close.shape == shape
    singular = jnp.linalg.svd(close, compute_uv=False)
    assert float(singular.min()) > 0.7
    assert float(singular.max()) < 1.3
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    cosine = jnp.sum(close * (u @ vt)) / jnp.linalg.norm(close) / jnp.linalg.norm(u @ vt)
    assert float(cosine) > 0.98, "the singular vectors must stay"
    assert not np.asarray(orthogonalize(jnp.zeros(shape), 5)).any(), "no gradient, no step"


def test_schedules_at_their_breakpoints():
    config = OptimizerConfig(warmup_steps=10, decay_fraction=0.4, final_fraction=0.1)
    wsd = learning_rate_schedule(config, 2.0, 100)
    for step, rate in ((0, 0.2), (9, 2.0), (60, 2.0), (80, 2 * (0.1 + 0.9 * 0.5)), (100, 0.2)):
        assert float(wsd(step)) == pytest.approx(rate, rel=1e-5), step
    cosine = learning_rate_schedule(replace(config, schedule="cosine"), 2.0, 100)
    for step, rate in ((0, 0.2), (10, 2.0), (55, 2 * (0.1 + 0.9 * 0.5)), (100, 0.2)):
        assert float(cosine(step)) == pytest.approx(rate, rel=1e-5), step


def test_weight_decay_acts_on_matrices_only():
    """With gradients of zero only the decay moves parameters. Under muon it leaves embeddings and head alone."""
    params = init_params(MODEL, 0)
    for kind in ("muon", "adamw"):
        tx = make_optimizer(OptimizerConfig(kind=kind, weight_decay=0.5, warmup_steps=1), 10)
        updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        moved = optax.apply_updates(params, updates)
        groups = jax.tree.leaves(parameter_groups(params))
        for before, after, group in zip(jax.tree.leaves(params), jax.tree.leaves(moved), groups, strict=True):
            if group == "hidden" or (kind == "adamw" and before.ndim == 2):
                assert float(jnp.linalg.norm(after)) < float(jnp.linalg.norm(before))
            else:
                np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("kind", ["lion", "adafactor", "sgd"])
def test_each_optimizer_decays_matrices_only_by_its_schedule(kind):
    """With gradients of zero only the decay moves parameters: by rate x decay."""
    optimizer = OptimizerConfig(kind=kind, learning_rate=0.1, weight_decay=0.5, warmup_steps=2)
    params = init_params(MODEL, 0)
    tx = make_optimizer(optimizer, 10)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        decay = 1 - 0.05 * 0.5 if before.ndim == 2 else 1.0
        np.testing.assert_allclose(after, decay * before, rtol=1e-5)


def test_lion_updates_have_equal_magnitude():
    """Lion's update is a sign (arXiv:2302.06675, algorithm 2)."""
    tx = make_optimizer(
        OptimizerConfig(kind="lion", learning_rate=0.01, weight_decay=0.0, warmup_steps=1), 10
    )
    params = init_params(MODEL, 0)
    gradients = jax.tree.map(lambda x: jnp.ones_like(x) * 1e-3, params)
    updates, _ = tx.update(gradients, tx.init(params), params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.01, rtol=1e-5)


def test_adafactor_keeps_rows_and_columns_of_matrices():
    state = make_optimizer(OptimizerConfig(kind="adafactor"), 10).init(init_params(MODEL, 0))
    kept = sum(x.size for x in jax.tree.leaves(state))
    assert kept < 0.1 * sum(x.size for x in jax.tree.leaves(init_params(MODEL, 0)))


def test_other_schedules_at_their_breakpoints():
    config = OptimizerConfig(schedule="linear", warmup_steps=10, final_fraction=0.1)
    linear = learning_rate_schedule(config, 2.0, 100)
    for step, rate in ((0, 0.2), (10, 2.0), (55, 2 * (0.1 + 0.9 * 0.5)), (100, 0.2)):
        assert float(linear(step)) == pytest.approx(rate, rel=1e-5), step
    inverse = learning_rate_schedule(replace(config, schedule="inverse_sqrt"), 2.0, 1000)
    for step, rate in ((0, 0.2), (9, 2.0), (39, 1.0), (999, 0.2)):
        assert float(inverse(step)) == pytest.approx(rate, rel=1e-5), step


def direction(kernel, block, writes_residual):
    return muon_directions([kernel], [writes_residual], iterations=5, block=block)[0]


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (96, 32)])
@pytest.mark.parametrize("writes_residual", [False, True])
def test_blocks_keep_the_norm_of_the_update(shape, writes_residual):
    kernel = jax.random.normal(jax.random.key(0), shape)
    expected = (min(shape) * max(1.0, shape[1] / shape[0])) ** 0.5
    for block in (0, 8, 16, 7):
        norm = float(jnp.linalg.norm(direction(kernel, block, writes_residual)))
        assert norm == pytest.approx(expected, rel=0.1), block


def test_each_head_is_orthogonalized_separately():
    kernel = jax.random.normal(jax.random.key(0), (32, 48))
    blocks = direction(kernel, 16, False)
    alone = direction(kernel.at[:, 16:].set(0.0), 16, False)
    np.testing.assert_allclose(blocks[:, :16], alone[:, :16], rtol=1e-4, atol=1e-6)
    gram = blocks[:, :16].T @ blocks[:, :16]
    np.testing.assert_allclose(gram, jnp.eye(16) * gram[0, 0], atol=0.3 * float(gram[0, 0]))
    np.testing.assert_allclose(
        direction(kernel.T, 16, True), blocks.T * (32 / 48) ** 0.5, rtol=1e-3, atol=1e-5
    )


def test_block_0_is_plain_muon():
    kernel = jax.random.normal(jax.random.key(0), (16, 64))
    np.testing.assert_allclose(
        direction(kernel, 0, False), orthogonalize(kernel, 5) * 2.0, rtol=1e-3, atol=1e-5
    )


def test_kernels_do_not_mix():
    """Blocks of one shape are orthogonalized in one batch; each kernel gets what it would get alone."""
    shapes = [(32, 32), (32, 64), (64, 32), (32, 32), (32, 20)]
    writes = [False, False, True, True, False]
    kernels = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    together = muon_directions(kernels, writes, iterations=5, block=16)
    for kernel, residual, update in zip(kernels, writes, together, strict=True):
        np.testing.assert_allclose(update, direction(kernel, 16, residual), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("devices", [2, 3, 4, 7])
def test_blocks_not_divisible_by_devices_are_padded_without_effect(monkeypatch, devices):
    """As on a mesh, of which one device reckons all blocks here."""
    kernels = [jax.random.normal(jax.random.key(i), (32, 48)) for i in range(3)]
    alone = muon_directions(kernels, [False] * 3, iterations=2, block=16)
    monkeypatch.setattr(optimizers, "num_devices", lambda axes: devices)
    shared = muon_directions(kernels, [False] * 3, iterations=2, block=16)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), shared, alone)
    monkeypatch.setattr(optimizers, "GROUP_SIZE", 32 * 48)
    few = muon_directions(kernels, [False] * 3, iterations=2, block=16)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), few, alone)


def test_parameter_groups():
    params = {
        "embedding": jnp.zeros((8, 4)),
        "head": jnp.zeros((4, 8)),
        "final_norm": {"scale": jnp.zeros(4)},
        "layer_0": {"attention": {"query": jnp.zeros((4, 4)), "query_norm": {"scale": jnp.zeros(4)}}},
    }
    assert parameter_groups(params) == {
        "embedding": "embedding",
        "head": "rest",
        "final_norm": {"scale": "rest"},
        "layer_0": {"attention": {"query": "hidden", "query_norm": {"scale": "rest"}}},
    }
