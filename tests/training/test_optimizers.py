"""Two steps of every update rule, on the whole tree, on parts of it and on adapters, against arithmetic in NumPy."""

from functools import cache, partial

import jax
import numpy as np
import pytest

from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.lora import leaves, nested
from zerotollm.training.optimizers import POLAR_EXPRESS, learning_rate_schedule, make_optimizer, orthogonalize
from zerotollm.training.step import init_state, make_train_step

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
    return train, {path: np.array(leaf, np.float32) for path, leaf in leaves(state.params)}


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_are_those_of_arithmetic(kind, part, clip):
    if clip and part != "all":
        pytest.skip("clipping knows no parts")
    config = OptimizerConfig(**(vars(CONFIG) | {"kind": kind, "clip_norm": clip}))
    _, params = trained_part(part)
    tx, draw = make_optimizer(config, STEPS, tied=False), np.random.default_rng(0)
    state, update = jax.jit(tx.init)(nested(params)), jax.jit(tx.update)
    memory = {path: {} for path in params}
    ours, expected = dict(params), {path: leaf.astype(np.float64) for path, leaf in params.items()}
    for t in (1, 2):
        gradients = {path: draw.normal(size=x.shape).astype(np.float32) for path, x in params.items()}
        updates, state = update(nested(gradients), state, nested(ours))
        ours = {path: ours[path] + np.asarray(step) for path, step in leaves(updates)}
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
def test_a_table_trained_alone_has_the_rate_that_it_has_among_others(tied):
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
def test_singular_values_are_bounded_as_the_docstring_says(iterations, least, most):
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


def test_the_schedule_of_a_group_is_that_of_its_rate():
    for name, rate in RATES.items():
        schedule = learning_rate_schedule(CONFIG, rate, STEPS)
        assert [float(schedule(t)) for t in (0, 3, 6)] == pytest.approx([rate / 4, rate, rate / 2]), name
