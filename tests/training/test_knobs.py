"""What ablations turn: the other optimizers and schedules, label smoothing, z-loss, initialization, tied tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.objectives import cross_entropy, penalized
from zerotollm.training.optimizers import learning_rate_schedule, make_optimizer, parameter_groups
from zerotollm.training.step import init_params, init_state, make_eval_step, make_train_step

MODEL = resolve(TransformerConfig(num_layers=1, width=32, num_heads=2), vocab_size=64, context=16)
TRAIN = TrainConfig(steps=8, seed=3)
RATES = {"lion": 3e-3, "adafactor": 1e-2, "sgd": 0.1}


def batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(4, 64, (8, 17)).astype(np.int32)
    ones = np.ones((8, 16), np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": ones,
        "weights": ones.astype(np.float32),
    }


@pytest.mark.parametrize("kind", RATES)
def test_each_optimizer_learns_one_batch_by_heart(kind):
    optimizer, train = OptimizerConfig(kind=kind, learning_rate=RATES[kind]), replace(TRAIN, steps=100)
    state, step = init_state(MODEL, optimizer, train), make_train_step(MODEL, optimizer, train)
    for _ in range(100):
        state, metrics = step(state, batch())
    assert float(metrics["loss"]) < 3.0, "random tokens start at ln 60 = 4.1"


@pytest.mark.parametrize("kind", RATES)
def test_each_optimizer_decays_matrices_only_by_its_schedule(kind):
    """With gradients of zero only the decay moves parameters: by rate x decay."""
    optimizer = OptimizerConfig(kind=kind, learning_rate=0.1, weight_decay=0.5, warmup_steps=2)
    params = init_params(MODEL, 0)
    tx = make_optimizer(optimizer, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        decay = 1 - 0.05 * 0.5 if before.ndim == 2 else 1.0
        np.testing.assert_allclose(after, decay * before, rtol=1e-5)


def test_lion_moves_every_number_equally_far():
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


def test_new_schedules_at_their_corners():
    config = OptimizerConfig(schedule="linear", warmup_steps=10, final_fraction=0.1)
    linear = learning_rate_schedule(config, 2.0, 100)
    for step, rate in ((0, 0.2), (10, 2.0), (55, 2 * (0.1 + 0.9 * 0.5)), (100, 0.2)):
        assert float(linear(step)) == pytest.approx(rate, rel=1e-5), step
    inverse = learning_rate_schedule(replace(config, schedule="inverse_sqrt"), 2.0, 1000)
    for step, rate in ((0, 0.2), (9, 2.0), (39, 1.0), (999, 0.2)):
        assert float(inverse(step)) == pytest.approx(rate, rel=1e-5), step


def test_label_smoothing_and_z_loss_are_their_formulas():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5)) * 4
    targets = jnp.array([[0, 1, 2], [3, 4, 0]])
    nats = cross_entropy(logits, targets)
    smooth = penalized(nats, logits, label_smoothing=0.2, z_loss=0.0)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 5), 0.2)
    np.testing.assert_allclose(smooth, optax.softmax_cross_entropy(logits, labels), rtol=1e-5)
    z = penalized(nats, logits, label_smoothing=0.0, z_loss=0.5) - nats
    np.testing.assert_allclose(z, 0.5 * jnp.log(jnp.sum(jnp.exp(logits), -1)) ** 2, rtol=1e-4)


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_they_change_gradients_and_the_logged_loss_stays_cross_entropy(change):
    results = []
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.1)
    for train in (TRAIN, replace(TRAIN, **change), replace(TRAIN, micro_batches=4, **change)):
        step = make_train_step(MODEL, optimizer, train)
        results.append(step(init_state(MODEL, optimizer, train), batch())[1])
    plain, other, parts = results
    assert float(other["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-6)
    assert abs(float(other["grad_norm"]) / float(plain["grad_norm"]) - 1) > 0.01
    assert float(parts["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)


def test_initialization_scales_what_writes_to_the_residual_stream_and_nothing_else():
    deeper = replace(MODEL, num_layers=2)  # four kernels write: each is scaled by 4**-0.5
    params = {
        kind: init_params(replace(deeper, initialization=kind), 0) for kind in ("scaled", "plain", "zero")
    }

    def check(path, scaled, plain, zero):
        gains = (2.0, 0.0) if path[-1].key in ("output", "down") else (1.0, 1.0)
        np.testing.assert_allclose(plain, gains[0] * scaled, rtol=1e-5)
        np.testing.assert_allclose(zero, gains[1] * scaled, rtol=1e-5)

    jax.tree_util.tree_map_with_path(check, params["scaled"], params["plain"], params["zero"])


def test_a_tied_table_starts_with_even_predictions_and_trains_as_a_head():
    model = replace(MODEL, tie_embeddings=True)
    params = init_params(model, 0)
    assert float(jnp.std(params["embedding"])) == pytest.approx(32**-0.5, rel=0.1)
    assert float(jnp.std(init_params(MODEL, 0)["embedding"])) == pytest.approx(1.0, rel=0.1)
    assert parameter_groups(params)["embedding"] == "rest"
    loss = make_eval_step(model)(params, batch())
    assert float(loss["nats"] / loss["tokens"]) < np.log(64) + 0.7, (
        "logits of standard deviation 1 cost half a nat"
    )
