"""The one train step: (state, batch) -> (state, metrics), a pure function compiled once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm.data.tokenizer import Tokenizer
from zerotollm.model.config import TransformerConfig
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.transformer import Transformer
from zerotollm.randomness import stream_key
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.objectives import cross_entropy, penalized
from zerotollm.training.optimizers import learning_rate_schedule, make_optimizer

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that changes from step to step."""

    step: jax.Array
    """int32 scalar: steps done"""
    params: Any
    """nested dict of float32 arrays"""
    opt_state: Any
    """optax state"""


def init_params(model: TransformerConfig, seed: int | jax.Array) -> Any:
    """Fresh parameters: a nested dict of float32 arrays."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    key = stream_key(seed, "init", 0)
    if model.architecture == "encoder-decoder":
        return EncoderDecoder(model).init(key, tokens_BT, tokens_BT == 0, tokens_BT)["params"]
    return Transformer(model).init(key, tokens_BT)["params"]


def init_state(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    seed: int | jax.Array | None = None,
) -> TrainState:
    """The state before the first step, of `seed` or else `train.seed`. Works under `jax.jit`, `jax.vmap` and
    `jax.eval_shape`."""
    params = init_params(model, train.seed if seed is None else seed)
    opt_state = make_optimizer(optimizer, train.steps).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def batch_logits(
    model: TransformerConfig, params: Any, batch: Batch, *, masked: bool, dropout_key: jax.Array | None
) -> jax.Array:
    """Logits (B, T, V) of a batch. With a dropout key, dropout is on."""
    if model.architecture == "encoder-decoder":
        net, sources_BS = EncoderDecoder(model), batch["sources"]
        arguments = (sources_BS, sources_BS != Tokenizer.pad_id, batch["inputs"])
    else:
        net, arguments = Transformer(model), (batch["inputs"], batch["segments"] if masked else None)
    return net.apply(
        {"params": params},
        *arguments,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


def make_train_step(
    model: TransformerConfig, optimizer: OptimizerConfig, train: TrainConfig, *, masked: bool = False
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of `train.seed`, compiled; it consumes the state that it is given (donated buffers)."""
    step = seeded_train_step(model, optimizer, train, masked=masked)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return step(state, batch, train.seed)

    return jax.jit(train_step, donate_argnums=0)


def seeded_train_step(
    model: TransformerConfig, optimizer: OptimizerConfig, train: TrainConfig, *, masked: bool = False
) -> Callable[[TrainState, Batch, int | jax.Array], tuple[TrainState, Metrics]]:
    """(state, batch, seed) -> (state, metrics), a pure function to be jitted, or vmapped over several seeds.

    Batch: "inputs", "targets" (B, T) int32, "weights" (B, T) float32 and "segments" (B, T) int32 or, for an
    encoder, "sources" (B, S) int32. `masked` keeps attention inside a document. With `train.micro_batches` the
    gradients of equal parts of the batch are summed by `lax.scan` before one update: the same update as of the
    whole batch, in less memory.
    Metrics, float32 scalars: loss (nats per token: cross-entropy alone, so that runs with label smoothing or
    z-loss compare), grad_norm, param_norm, learning_rate.
    """
    tx = make_optimizer(optimizer, train.steps)
    schedule = learning_rate_schedule(optimizer, optimizer.learning_rate, train.steps)
    parts = train.micro_batches

    def nats_and_gradients(params, part, key):
        def objective(params):
            dropout_key = key if model.dropout else None
            logits_BTV = batch_logits(model, params, part, masked=masked, dropout_key=dropout_key)
            nats_BT = cross_entropy(logits_BTV, part["targets"])
            total = jnp.sum(nats_BT * part["weights"])
            if not (train.label_smoothing or train.z_loss):
                return total, total
            loss_BT = penalized(
                nats_BT, logits_BTV, label_smoothing=train.label_smoothing, z_loss=train.z_loss
            )
            return jnp.sum(loss_BT * part["weights"]), total

        (_, total), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return total, gradients

    def train_step(state: TrainState, batch: Batch, seed: int | jax.Array) -> tuple[TrainState, Metrics]:
        key = stream_key(seed, "dropout", state.step)
        if parts == 1:
            total, gradients = nats_and_gradients(state.params, batch, key)
        else:

            def accumulate(carry, part_and_key):
                return jax.tree.map(jnp.add, carry, nats_and_gradients(state.params, *part_and_key)), None

            split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            (total, gradients), _ = jax.lax.scan(accumulate, zeros, (split, jax.random.split(key, parts)))
        weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": total / weight,
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(params),
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(
    model: TransformerConfig, *, masked: bool = False
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """The compiled evaluation of one batch: {"nats": summed loss, "tokens": summed weights}, dropout off."""

    def eval_step(params, batch):
        logits_BTV = batch_logits(model, params, batch, masked=masked, dropout_key=None)
        nats_BT = cross_entropy(logits_BTV, batch["targets"])
        return {"nats": jnp.sum(nats_BT * batch["weights"]), "tokens": jnp.sum(batch["weights"])}

    return jax.jit(eval_step)
