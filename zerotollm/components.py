"""The functions that an experiment composes: model, optimizer, objective, dataset, and the training made of them.

Each takes the experiment, with its model resolved. An experiment's file may define functions of these names that take
their place: see `zerotollm.own_code`. Everything that trains, plans, measures or writes gets them from `model_of`,
`dataset_of` and `training_of`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zerotollm import run_directory
from zerotollm.data.config import TokenizerConfig
from zerotollm.data.feed import Feed, open_feed
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer, load_tokenizer
from zerotollm.experiment import Experiment, makes_tokenizer, task_of
from zerotollm.model.accelerator import this_accelerator
from zerotollm.model.build import Net, Params, apply_net, build_net, init_params
from zerotollm.model.compute_config import PLAIN, Accelerator, ComputeConfig, resolve
from zerotollm.model.config import TransformerConfig
from zerotollm.model.transformer import Inputs
from zerotollm.randomness import Seed, stream_key
from zerotollm.training.lora import merge_params, split_params
from zerotollm.training.loss_scale import init_loss_scale
from zerotollm.training.objectives import Batch, Objective, cross_entropy_objective, logits_of
from zerotollm.training.optimizers import learning_rate_schedule, make_optimizer, peak_rate
from zerotollm.training.step import (
    EvalStep,
    LossFn,
    TrainState,
    TrainStep,
    in_micro_batches,
    make_train_step,
    mean_gradients,
    plain_update,
    skip_overflow,
    sum_gradients,
    with_frozen,
)

# --- the built-in functions


def model(experiment: Experiment) -> Net:
    """Return the net of `experiment.model`, computed as `experiment.compute`, resolved too, says."""
    return build_net(experiment.model, experiment.compute)


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Return the optimizer of `experiment.optimizer` over `experiment.train.steps` steps."""
    return make_optimizer(experiment.optimizer, experiment.train.steps, _is_tied(experiment.model))


def objective(experiment: Experiment) -> Objective:
    """Return the cross-entropy with the penalties of `experiment.train`."""
    train, chunked = experiment.train, experiment.compute.cross_entropy == "chunked"
    return cross_entropy_objective(train.label_smoothing, train.z_loss, chunked=chunked)


def dataset(
    experiment: Experiment,
    tokenizer: AnyTokenizer | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Feed:
    """Return the batches of `experiment.data`, prepared if they are not yet: see `open_feed`, also for `progress`.

    A `tokenizer` that is not made from the text is given, or is that of `train.start_from`.
    """
    return open_feed(
        experiment.data,
        tokenizer or tokenizer_of(experiment),
        objective=experiment.train.objective,
        pairs=task_of(experiment) in ("translate", "denoise"),
        micro_batches=experiment.train.micro_batches,
        progress=progress,
    )


# --- what is made of them


def tokenizer_of(experiment: Experiment) -> TokenizerConfig | AnyTokenizer:
    """Return the tokenizer of `train.start_from`, or else how one is made from the text."""
    if makes_tokenizer(experiment):
        return experiment.tokenizer
    return load_tokenizer(Path(experiment.train.start_from) / run_directory.TOKENIZER)


def model_of(experiment: Experiment) -> Net:
    """Return the net in float32 with everything held, as it is initialized and as it writes."""
    plain = replace(experiment, compute=PLAIN)
    return (experiment.code.function("model") or model)(plain)


def dataset_of(experiment: Experiment, **options) -> Feed:
    """Return the batches of the experiment; `options` as of `dataset`."""
    own = experiment.code.function("dataset")
    return own(experiment) if own else dataset(experiment, **options)


class Training(NamedTuple):
    """The pure functions of one experiment, to be compiled."""

    init: Callable[[Seed, Params | None], TrainState]
    """(seed, parameters of another run) -> the state before the first step; what is not given is drawn"""
    train_step: TrainStep
    eval_step: EvalStep
    """(all parameters, batch) -> {"nats": summed loss, "tokens": summed weights}, dropout off; for labels also
    "correct", the summed weights of those predicted right"""
    loss: LossFn
    merge: Callable[[Params, Params | None], Params]
    """(trainable, frozen) -> all parameters"""


def training_of(experiment: Experiment, pad_id: int = Tokenizer.pad_id) -> Training:
    """Return the training of an experiment, its model resolved. Sources are padded with `pad_id`.

    How a batch is computed (`experiment.compute`) is decided by its shape, when a function is traced.
    """
    train, code, net = experiment.train, experiment.code, model_of(experiment)
    tx = (code.function("optimizer") or optimizer)(experiment)
    make_model, make_objective = code.function("model") or model, code.function("objective") or objective

    def init(seed: Seed, init_from: Params | None = None) -> TrainState:
        params = init_params(net, seed)
        new = frozenset(params) - frozenset(init_from or params)
        key = stream_key(seed, "lora")
        params, frozen = split_params(params | (init_from or {}), train, key, new)
        scale = init_loss_scale() if precision(experiment) == "float16" else None
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), scale, frozen)

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        here = computed(experiment, batch)
        readout = apply_net(
            make_model(here),
            params,
            _net_inputs(here, batch, pad_id),
            deterministic=not here.model.dropout,
            rngs={"dropout": key} if here.model.dropout else None,
        )
        with jax.named_scope("loss"):
            return make_objective(here)(readout, batch)

    def eval_step(params: Params, batch: Batch) -> dict[str, jax.Array]:
        here = computed(experiment, batch)
        readout = apply_net(make_model(here), params, _net_inputs(here, batch, pad_id))
        labels = here.model.num_classes
        # Labels have few logits.
        chunked = here.compute.cross_entropy == "chunked" and not labels
        _, nats = cross_entropy_objective(chunked=chunked)(readout, batch)
        sums = {"nats": nats, "tokens": jnp.sum(batch["weights"])}
        if labels:
            right_BT = jnp.argmax(logits_of(readout, batch), axis=-1) == batch["targets"]
            sums["correct"] = jnp.sum(right_BT * batch["weights"])
        return sums

    def learning_rate(state: TrainState) -> jax.Array:
        peak = peak_rate(experiment.optimizer, state.params, _is_tied(experiment.model))
        return jnp.asarray(learning_rate_schedule(experiment.optimizer, peak, train.steps)(state.step))

    gradients = in_micro_batches(sum_gradients(with_frozen(loss, train)), train.micro_batches)
    update = plain_update(tx, None if code.function("optimizer") else learning_rate)
    if precision(experiment) == "float16":
        update = skip_overflow(update)
    train_step = make_train_step(mean_gradients(gradients), update)
    return Training(init, train_step, eval_step, loss, partial(merge_params, train=train))


def label_step_of(
    experiment: Experiment, pad_id: int = Tokenizer.pad_id
) -> Callable[[Params, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
    """Return (params, batch) -> (probabilities (B, K), labels (B,), weights (B,): 0 at rows of padding), compiled."""
    net = model_of(experiment)

    def label_step(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        readout = apply_net(net, params, _net_inputs(experiment, batch, pad_id))
        asked_B11 = jnp.argmax(batch["weights"], axis=1)[:, None, None]
        logits_BK = jnp.take_along_axis(logits_of(readout, batch), asked_B11, axis=1)[:, 0]
        labels_B = jnp.take_along_axis(batch["targets"], asked_B11[..., 0], axis=1)[:, 0]
        return jax.nn.softmax(logits_BK, axis=-1), labels_B, jnp.max(batch["weights"], axis=1)

    return jax.jit(label_step)


def precision(experiment: Experiment) -> str:
    """Return the type of activations on this device."""
    half = "float32" if experiment.model.encoder_layers else this_accelerator().half()
    return half if experiment.compute.precision == "auto" else experiment.compute.precision


def computed(experiment: Experiment, batch: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> Experiment:
    """Return the experiment with its `compute` resolved for this batch, or micro-batch, on this device."""
    rows, context = batch["inputs"].shape
    return replace(experiment, compute=compute_on(this_accelerator(), experiment, rows, context))


def compute_on(accelerator: Accelerator, experiment: Experiment, rows: int, context: int) -> ComputeConfig:
    """Return `experiment.compute` resolved for `rows` windows of `context` tokens at once on an accelerator."""
    c = experiment.model
    return resolve(
        experiment.compute,
        accelerator,
        rows=rows,
        context=context,
        vocab_size=c.num_classes or c.vocab_size,
        masked=experiment.data.document_mask,
        even=c.key_width in (0, c.head_width),
        pairs=c.encoder_layers > 0,
    )


def _net_inputs(experiment: Experiment, batch: Batch, pad_id: int) -> Inputs:
    """Return what the net reads of a batch: see `zerotollm.model.transformer.Inputs`."""
    inputs = {"inputs": batch["inputs"]}
    if experiment.model.encoder_layers:
        sources_BS = batch["inputs" if experiment.model.num_classes else "sources"]
        inputs |= {"sources": sources_BS, "source_mask": sources_BS != pad_id}
    elif experiment.data.document_mask:
        inputs["segments"] = batch["segments"]
    return inputs


def _is_tied(config: TransformerConfig) -> bool:
    """Return whether the embedding table is the head too."""
    return config.tie_embeddings and not config.num_classes
