"""What ablations turn: the other optimizers and schedules, label smoothing, z-loss, initialization, tied tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import init_params, init_state, make_eval_step, make_train_step
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.optimizers import parameter_groups

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
def test_each_optimizer_overfits_one_batch(kind):
    optimizer, train = OptimizerConfig(kind=kind, learning_rate=RATES[kind]), replace(TRAIN, steps=100)
    state, step = init_state(MODEL, optimizer, train), make_train_step(MODEL, optimizer, train)
    for _ in range(100):
        state, metrics = step(state, batch())
    assert float(metrics["loss"]) < 3.0, "random tokens start at ln 60 = 4.1"


def test_initialization_scales_only_residual_output_projections():
    deeper = replace(MODEL, num_layers=2)  # four kernels write: each is scaled by 4**-0.5
    params = {
        kind: init_params(replace(deeper, initialization=kind), 0) for kind in ("scaled", "plain", "zero")
    }

    def check(path, scaled, plain, zero):
        gains = (2.0, 0.0) if path[-1].key in ("output", "down") else (1.0, 1.0)
        np.testing.assert_allclose(plain, gains[0] * scaled, rtol=1e-5)
        np.testing.assert_allclose(zero, gains[1] * scaled, rtol=1e-5)

    jax.tree_util.tree_map_with_path(check, params["scaled"], params["plain"], params["zero"])


def test_a_tied_embedding_starts_with_uniform_predictions_and_trains_as_a_head():
    model = replace(MODEL, tie_embeddings=True)
    params = init_params(model, 0)
    assert float(jnp.std(params["embedding"])) == pytest.approx(32**-0.5, rel=0.1)
    assert float(jnp.std(init_params(MODEL, 0)["embedding"])) == pytest.approx(1.0, rel=0.1)
    assert parameter_groups(params)["embedding"] == "rest"
    loss = make_eval_step(model)(params, batch())
    assert float(loss["nats"] / loss["tokens"]) < np.log(64) + 0.7, (
        "logits of standard deviation 1 cost half a nat"
    )
