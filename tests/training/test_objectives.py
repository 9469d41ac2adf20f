"""Cross-entropy, label smoothing and z-loss, against their formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.functions import init_state, make_train_step
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.cross_entropy import Penalty, token_losses

MODEL = resolve(TransformerConfig(num_layers=1, width=32, num_heads=2), vocab_size=64, context=16)
TRAIN = TrainConfig(steps=8, seed=3)


def batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(4, 64, (8, 17)).astype(np.int32)
    ones = np.ones((8, 16), np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": ones,
        "weights": ones.astype(np.float32),
    }


def test_cross_entropy_is_minus_log_softmax():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5)) * 4
    targets = jnp.array([[0, 1, 2], [3, 4, 0]])
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(token_losses(logits, targets)[1], expected, rtol=1e-5)


def test_label_smoothing_and_z_loss_match_their_formulas():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5)) * 4
    targets = jnp.array([[0, 1, 2], [3, 4, 0]])
    smooth, nats, _ = token_losses(logits, targets, Penalty(label_smoothing=0.2))
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 5), 0.2)
    np.testing.assert_allclose(smooth, optax.softmax_cross_entropy(logits, labels), rtol=1e-5)
    z = token_losses(logits, targets, Penalty(z_loss=0.5))[0] - nats
    np.testing.assert_allclose(z, 0.5 * jnp.log(jnp.sum(jnp.exp(logits), -1)) ** 2, rtol=1e-4)


@pytest.mark.parametrize("change", [{"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_penalties_change_gradients_but_not_the_logged_loss(change):
    results = []
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.1)
    for train in (TRAIN, replace(TRAIN, **change), replace(TRAIN, micro_batches=4, **change)):
        step = make_train_step(MODEL, optimizer, train)
        results.append(step(init_state(MODEL, optimizer, train), batch())[1])
    plain, other, parts = results
    assert float(other["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-6)
    assert abs(float(other["grad_norm"]) / float(plain["grad_norm"]) - 1) > 0.01
    assert float(parts["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)


def test_hand_computed_loss():
    """Of logits log 1, log 2, log 5: Z = 8, and the mean of the logits is log 10 / 3."""
    logits, nats = jnp.log(jnp.array([[[1.0, 2.0, 5.0]]])), jnp.log(8 / 5)
    np.testing.assert_allclose(token_losses(logits, jnp.array([[2]]))[1], [[nats]], rtol=1e-6)
    even = np.log(8) - np.log(10) / 3
    found = token_losses(logits, jnp.array([[2]]), Penalty(0.25, 0.125))[0]
    np.testing.assert_allclose(found, [[0.75 * nats + 0.25 * even + 0.125 * np.log(8) ** 2]], rtol=1e-6)
