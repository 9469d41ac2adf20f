"""The one train step: (state, batch) -> (state, metrics), a pure function compiled once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.model.accelerator import this_accelerator
from zerotollm.model.compute_config import PLAIN, ComputeConfig, resolve
from zerotollm.model.config import TransformerConfig
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.transformer import Transformer
from zerotollm.randomness import stream_key
from zerotollm.sharding.constraints import ROWS, constrain
from zerotollm.training import loss_scale as scaling
from zerotollm.training.chunked_cross_entropy import Penalty, chunked_cross_entropy
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.lora import merge_params, split_params
from zerotollm.training.loss_scale import LossScale
from zerotollm.training.objectives import cross_entropy, penalized
from zerotollm.training.optimizers import at_step, learning_rate_schedule, make_optimizer, peak_rate

AUTO = ComputeConfig()
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
    loss_scale: LossScale | None = None
    """in float16 only"""
    frozen: Any = None
    """parameters that stay as they are, where `params` are a part or adapters: see `zerotollm.training.lora`"""

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds, by name: all but what is frozen, for that lies where training began."""
        return {name: value for name, value in self._asdict().items() if name != "frozen"}


def init_params(model: TransformerConfig, seed: int | jax.Array) -> Any:
    """Fresh parameters: a nested dict of float32 arrays."""
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    key = stream_key(seed, "init", 0)
    if model.architecture == "encoder-decoder" and model.num_classes:
        return EncoderDecoder(model).init(key, tokens_BT, tokens_BT == 0, method="classify")["params"]
    if model.architecture == "encoder-decoder":
        return EncoderDecoder(model).init(key, tokens_BT, tokens_BT == 0, tokens_BT)["params"]
    return Transformer(model).init(key, tokens_BT)["params"]


def init_state(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    seed: int | jax.Array | None = None,
    compute: ComputeConfig = AUTO,
    given: Any = None,
) -> TrainState:
    """The state before the first step, of `seed` or else `train.seed`, with parameters that are `given` instead of
    fresh ones. Works under `jax.jit`, `jax.vmap` and `jax.eval_shape`."""
    seed = train.seed if seed is None else seed
    params = init_params(model, seed)
    new = frozenset(params) - frozenset(given or params)
    params, frozen = split_params(params | (given or {}), train, stream_key(seed, "lora"), new)
    opt_state = make_optimizer(optimizer, train.steps, _is_tied(model)).init(params)
    scale = scaling.init_loss_scale() if _precision(compute, model) == "float16" else None
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, scale, frozen)


def _is_tied(model: TransformerConfig) -> bool:
    """Whether the table of embeddings is the head too."""
    return model.tie_embeddings and not model.num_classes


def _precision(compute: ComputeConfig, model: TransformerConfig) -> str:
    """The type of activations on this device."""
    if compute.precision != "auto":
        return compute.precision
    return "float32" if model.architecture == "encoder-decoder" else this_accelerator().half()


def resolved_for(
    compute: ComputeConfig, model: TransformerConfig, batch: Batch, *, masked: bool
) -> ComputeConfig:
    """How this very batch (or micro-batch) is computed on this device."""
    rows, context = batch["inputs"].shape
    return resolve(
        compute,
        this_accelerator(),
        rows=rows,
        context=context,
        vocab_size=model.num_classes or model.vocab_size,
        masked=masked,
        even=model.key_width in (0, model.head_width),
        pairs=model.architecture == "encoder-decoder",
    )


def batch_logits(
    model: TransformerConfig,
    params: Any,
    batch: Batch,
    *,
    masked: bool,
    dropout_key: jax.Array | None,
    compute: ComputeConfig = PLAIN,
    with_logits: bool = True,
    pad_id: int = Tokenizer.pad_id,
) -> Any:
    """Logits (B, T, V) of a batch, or not `with_logits` what `Transformer` returns instead. With a dropout key, dropout
    is on. `compute` is resolved. Sources are padded with `pad_id`."""
    if model.architecture == "encoder-decoder":
        net = EncoderDecoder(model, compute)
        options = {"with_logits": with_logits} | ({"method": "classify"} if model.num_classes else {})
        sources_BS = batch["inputs" if model.num_classes else "sources"]
        arguments = (sources_BS, sources_BS != pad_id, *([] if model.num_classes else [batch["inputs"]]))
    else:
        net, options = Transformer(model, compute), {"with_logits": with_logits}
        arguments = (batch["inputs"], batch["segments"] if masked else None)
    return net.apply(
        {"params": params},
        *arguments,
        deterministic=dropout_key is None,
        **options,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )


def objective_of(
    model: TransformerConfig,
    train: TrainConfig,
    *,
    masked: bool = False,
    compute: ComputeConfig = AUTO,
    pad_id: int = Tokenizer.pad_id,
) -> Callable[[Any, Batch, jax.Array], tuple[jax.Array, jax.Array]]:
    """(params, batch, dropout key) -> (what gradients make small, cross-entropy), both summed over weighted tokens,
    in nats."""

    def objective(params, part, key):
        how = resolved_for(compute, model, part, masked=masked)
        dropout_key = key if model.dropout else None
        forward = partial(
            batch_logits,
            model,
            params,
            part,
            masked=masked,
            dropout_key=dropout_key,
            compute=how,
            pad_id=pad_id,
        )
        if how.cross_entropy == "chunked":
            penalty = Penalty(train.label_smoothing, train.z_loss, model.logit_soft_cap)
            return chunked_cross_entropy(
                *forward(with_logits=False), part["targets"], part["weights"], penalty
            )
        logits_BTV = forward()
        nats_BT = cross_entropy(logits_BTV, part["targets"])
        total = jnp.sum(nats_BT * part["weights"])
        if not (train.label_smoothing or train.z_loss):
            return total, total
        loss_BT = penalized(nats_BT, logits_BTV, label_smoothing=train.label_smoothing, z_loss=train.z_loss)
        return jnp.sum(loss_BT * part["weights"]), total

    return objective


def make_train_step(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    *,
    masked: bool = False,
    compute: ComputeConfig = AUTO,
    pad_id: int = Tokenizer.pad_id,
    out_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of `train.seed`, compiled; it consumes the state that it is given (donated buffers). On a mesh
    `out_shardings` is (where the state's arrays lie, where the metrics lie); None leaves that to the compiler."""
    step = seeded_train_step(model, optimizer, train, masked=masked, compute=compute, pad_id=pad_id)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return step(state, batch, train.seed)

    return jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings)


def seeded_train_step(
    model: TransformerConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    *,
    masked: bool = False,
    compute: ComputeConfig = AUTO,
    pad_id: int = Tokenizer.pad_id,
) -> Callable[[TrainState, Batch, int | jax.Array], tuple[TrainState, Metrics]]:
    """(state, batch, seed) -> (state, metrics), a pure function to be jitted, or vmapped over several seeds.

    Batch: "inputs", "targets" (B, T) int32, "weights" (B, T) float32 and "segments" (B, T) int32 or, for an
    encoder, "sources" (B, S) int32. `masked` keeps attention inside a document. With `train.micro_batches` the
    gradients of equal parts of the batch are summed by `lax.scan` before one update: the same update as of the
    whole batch, in less memory.
    Where only a part of the parameters is trained, or adapters, gradients are by these alone.
    Metrics, float32 scalars: loss (nats per token: cross-entropy alone, so that runs with label smoothing or
    z-loss compare), grad_norm, param_norm, learning_rate.
    In float16 a step whose gradients overflow changes nothing but `step` and the loss scale; metrics then also have
    loss_scale and skipped_steps, and the grad_norm of a skipped step is 0, unless the scale cannot fall any further.
    The learning_rate is that of the step, however many were skipped before; see `peak_rate`.
    """
    tx = make_optimizer(optimizer, train.steps, _is_tied(model))
    parts = train.micro_batches

    objective = objective_of(model, train, masked=masked, compute=compute, pad_id=pad_id)

    def nats_and_gradients(state, part, key, factor, adapter_key):
        def scaled(params):
            full = merge_params(params, state.frozen, train, adapter_key)
            total_loss, total = objective(full, part, key)
            return total_loss if factor is None else factor * total_loss, total

        (_, total), gradients = jax.value_and_grad(scaled, has_aux=True)(state.params)
        return total, gradients

    def train_step(state: TrainState, batch: Batch, seed: int | jax.Array) -> tuple[TrainState, Metrics]:
        peak = peak_rate(optimizer, state.params, _is_tied(model))
        schedule = learning_rate_schedule(optimizer, peak, train.steps)
        key = stream_key(seed, "dropout", state.step)
        adapter_key = stream_key(seed, "lora dropout", state.step)
        weight = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        # The scale is one of the mean loss, whose gradients hardly depend on the size of the batch.
        factor = state.loss_scale.scale / weight if state.loss_scale else None
        if parts == 1:
            total, gradients = nats_and_gradients(state, batch, key, factor, adapter_key)
        else:

            def accumulate(carry, part_and_key):
                part = nats_and_gradients(state, *part_and_key, factor, adapter_key)
                return jax.tree.map(jnp.add, carry, part), None

            def split_rows(x):
                x = x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
                return constrain(x, None, ROWS)  # every device has rows of every part

            split = jax.tree.map(split_rows, batch)
            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            (total, gradients), _ = jax.lax.scan(accumulate, zeros, (split, jax.random.split(key, parts)))
        divisor = weight if factor is None else state.loss_scale.scale
        gradients = jax.tree.map(lambda g: g / divisor, gradients)
        updates, opt_state = tx.update(gradients, at_step(state.opt_state, state.step), state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": total / weight,
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": optax.tree.norm(params),
            "learning_rate": schedule(state.step),
        }
        scale = state.loss_scale
        if scale:
            finite = scaling.all_finite(gradients)
            params, opt_state = scaling.chosen(finite, (params, opt_state), (state.params, state.opt_state))
            hidden = ~finite & (scale.scale > scaling.FLOOR)
            metrics["grad_norm"] = jnp.where(hidden, 0.0, metrics["grad_norm"])
            scale = scaling.updated(scale, finite)
            metrics["param_norm"] = optax.tree.norm(params)
            metrics |= {"loss_scale": scale.scale, "skipped_steps": scale.skipped.astype(jnp.float32)}
        return TrainState(state.step + 1, params, opt_state, scale, state.frozen), metrics

    return train_step


def make_eval_step(
    model: TransformerConfig,
    *,
    masked: bool = False,
    compute: ComputeConfig = AUTO,
    pad_id: int = Tokenizer.pad_id,
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """The compiled evaluation of one batch: {"nats": summed loss, "tokens": summed weights}, dropout off; of labels
    also "correct", the summed weights of those that are the likeliest."""

    def eval_step(params, batch):
        how = resolved_for(compute, model, batch, masked=masked)
        forward = partial(
            batch_logits,
            model,
            params,
            batch,
            masked=masked,
            dropout_key=None,
            compute=how,
            pad_id=pad_id,
        )
        if how.cross_entropy == "chunked" and not model.num_classes:  # of labels there are few logits
            penalty = Penalty(soft_cap=model.logit_soft_cap)
            _, nats = chunked_cross_entropy(
                *forward(with_logits=False), batch["targets"], batch["weights"], penalty
            )
            return {"nats": nats, "tokens": jnp.sum(batch["weights"])}
        logits_BTV = forward()
        nats = jnp.sum(cross_entropy(logits_BTV, batch["targets"]) * batch["weights"])
        sums = {"nats": nats, "tokens": jnp.sum(batch["weights"])}
        if model.num_classes:
            right_BT = jnp.argmax(logits_BTV, axis=-1) == batch["targets"]
            sums["correct"] = jnp.sum(right_BT * batch["weights"])
        return sums

    return jax.jit(eval_step)


def make_label_step(
    model: TransformerConfig, *, pad_id: int = Tokenizer.pad_id
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
    """(params, batch) -> (probabilities (B, K), labels (B,), weights (B,): 0 of a row of padding), compiled."""

    def label_step(params, batch):
        logits_BTK = batch_logits(model, params, batch, masked=False, dropout_key=None, pad_id=pad_id)
        asked_B11 = jnp.argmax(batch["weights"], axis=1)[:, None, None]
        logits_BK = jnp.take_along_axis(logits_BTK, asked_B11, axis=1)[:, 0]
        labels_B = jnp.take_along_axis(batch["targets"], asked_B11[..., 0], axis=1)[:, 0]
        return jax.nn.softmax(logits_BK, axis=-1), labels_B, jnp.max(batch["weights"], axis=1)

    return jax.jit(label_step)
