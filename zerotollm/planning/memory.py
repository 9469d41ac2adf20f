"""Memory of a train step or a server by kind, from traced shapes or from XLA's account: nothing is allocated."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jax.stages import Compiled, Wrapped

from zerotollm.components import Training, computed, model_of, training_of
from zerotollm.data.config import DataConfig
from zerotollm.decoding.cache_growth import cache_bytes
from zerotollm.decoding.continuous import CHUNK, SCORED
from zerotollm.experiment import Experiment
from zerotollm.model.build import Params, init_params
from zerotollm.model.compute_config import ComputeConfig
from zerotollm.model.config import TransformerConfig, round_up
from zerotollm.own_code import OwnCode
from zerotollm.planning.flops import decoder_layers, head_rows
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.cross_entropy import rows_for
from zerotollm.training.lora import merge_params, trains_subset
from zerotollm.training.parameter_transfer import NEW
from zerotollm.training.step import TrainState

CPU_SCRATCH = 1.05
"""Memory of a process on a CPU over XLA's plan: the matrix library packs operands. About the median over the
configurations of tests/bench_plan.py."""
DEEP = 6
"""Layers above which a step is traced as a loop, several times as fast, with about the same residuals."""


@dataclass(frozen=True)
class Job:
    """Everything that decides the cost of a train step. `model` is resolved."""

    model: TransformerConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    compute: ComputeConfig
    batch_size: int
    """windows per step, over all micro-batches; with an encoder, pairs"""
    context: int
    """tokens in a window; with an encoder, in a source and in a target of the widest bucket"""
    masked: bool = False
    """attention stays inside a document"""
    code: OwnCode = OwnCode()  # noqa: RUF009
    """functions that replace built-in ones"""

    @property
    def experiment(self) -> Experiment:
        """The experiment that has this step."""
        data = DataConfig(batch_size=self.batch_size, context=self.context, document_mask=self.masked)
        return Experiment(
            data=data,
            model=self.model,
            optimizer=self.optimizer,
            train=self.train,
            compute=self.compute,
            code=self.code,
        )

    def training(self) -> Training:
        return training_of(self.experiment)

    @property
    def micro_batch(self) -> int:
        """Windows that are in memory at once."""
        return self.batch_size // self.train.micro_batches

    def batch(self, rows: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of a batch of `rows` windows; 0: of a step."""
        other = "sources" if self.model.encoder_layers else "segments"
        types = {"inputs": jnp.int32, "targets": jnp.int32, other: jnp.int32, "weights": jnp.float32}
        shape = (rows or self.batch_size, self.context)
        return {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in types.items()}

    def parameters(self) -> Params:
        """Return the shapes of all parameters of the model."""
        return _parameters(self.model, self.code)

    def state(self) -> TrainState:
        """Return the shapes of the training state; a head of labels is never inherited from `train.start_from`."""
        compute = ComputeConfig(precision=self.resolved_compute().precision)
        train = replace(self.train, micro_batches=1)
        return _state(replace(self, batch_size=1, train=train, compute=compute))

    def step(self) -> Wrapped:
        """Return the jitted train step."""
        step = self.training().train_step
        return jax.jit(lambda state, batch: step(state, batch, self.train.seed), donate_argnums=0)

    def resolved_compute(self) -> ComputeConfig:
        """Return `compute` with every choice made for a micro-batch."""
        return computed(self.experiment, self.batch(self.micro_batch)).compute


def tree_bytes(tree: object) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_by_kind(job: Job) -> dict[str, int]:
    """Return the bytes at the peak: the end of the last forward pass, or the update after it.

    `activations` are those residuals of `jax.vjp` on one micro-batch, as traced, that grow with the number of windows.
    `workspace` estimates temporary buffers. `shared`, at most 0, is memory that two kinds use one after the other.
    """
    compute = job.resolved_compute()
    parameters, trained, optimizer_state, _ = _state_bytes(_state_job(job))
    # A loop hides that frozen layers keep nothing.
    loop = compute.scan_layers or (job.model.num_layers > DEEP and not trains_subset(job.train))
    losses = {"label_smoothing": job.train.label_smoothing, "z_loss": job.train.z_loss}
    window = replace(
        job,
        train=replace(_trained_subset(job.train), **losses),
        optimizer=OptimizerConfig(),
        compute=replace(compute, scan_layers=loop),
    )
    activations = _activation_bytes(window, job.micro_batch)
    tokens, V = job.micro_batch * job.context, head_rows(job.model)
    if compute.cross_entropy == "chunked":
        residual = 0
        # With their gradient, in the type of products.
        logits = rows_for(tokens, V) * V * (8 if compute.precision == "float32" else 10)
    else:
        residual = tokens * V * 4  # plain cross-entropy keeps exp(logits)
        logits = residual + tokens * V * 4  # and their gradient
    widest = max(job.model.ff_width, job.model.num_heads * job.model.head_width)
    recomputed = 0
    if compute.remat != "none":  # one block's residuals are there at once, when the logits are not any more
        plain = replace(window, compute=replace(window.compute, remat="none"))
        blocks = decoder_layers(job.model) + job.model.encoder_layers
        recomputed = (_activation_bytes(plain, job.micro_batch) - activations) // blocks
        recomputed = max(0, recomputed - logits)
    return {
        "parameters": parameters,
        "gradients": trained * (2 if job.train.micro_batches > 1 else 1),
        "optimizer state": optimizer_state,
        "activations": activations - residual,
        "logits": logits,
        "workspace": 2 * tokens * widest * 4 + copied_matrices(job) + recomputed,
        # Gradients replace activations during the backward pass; rematerialized activations leave less to replace.
        "shared": -min(trained, activations - residual + logits) if compute.remat == "none" else 0,
    }


def serving_memory(model: TransformerConfig, rows: int, context: int) -> dict[str, int]:
    """Return the bytes while `rows` texts of at most `context` tokens are written at once, by kind.

    See `zerotollm.decoding.continuous`. `parameters` are there twice: as loaded, and with fused matrices. `workspace`
    is an estimate: logits, and three times the attention scores of a chunk of a prompt or of a step, the larger one.
    """
    slots, V = round_up(context, 16), model.vocab_size
    queries = max(rows, min(slots, CHUNK))
    return {
        "parameters": 2 * tree_bytes(_parameters(model)),
        "KV cache": slots * cache_bytes(model, rows),
        "workspace": 3 * 4 * queries * model.num_heads * slots + 4 * (SCORED + rows) * V,
    }


def largest_context(model: TransformerConfig, rows: int, room: float) -> int:
    """Return the largest multiple of 16, up to the model's context, whose `serving_memory` fits; 0: none."""
    contexts = range(16, model.max_length + 1, 16)
    fitting = bisect_right(contexts, room, key=lambda c: sum(serving_memory(model, rows, c).values()))
    return contexts[fitting - 1] if fitting else 0


def copied_matrices(job: Job) -> int:
    """Return the bytes of the matrices cast to half precision; in float32, of the stack for a loop over layers."""
    compute = job.resolved_compute()
    *_, matrices = _state_bytes(_state_job(job))
    return matrices // 2 if compute.precision != "float32" else matrices if compute.scan_layers else 0


def _state_job(job: Job) -> Job:
    """Return the job without what does not change the size of its state, so that many jobs share one trace."""
    compute = ComputeConfig(precision=job.resolved_compute().precision)
    return replace(job, train=_trained_subset(job.train), batch_size=1, compute=compute)


def _trained_subset(train: TrainConfig) -> TrainConfig:
    """Return only the fields that decide which parameters are trained."""
    fields = ("start_from", "trainable", "lora_rank", "lora_targets")
    return TrainConfig(**{name: getattr(train, name) for name in fields})


@lru_cache(maxsize=64)
def _state(job: Job) -> TrainState:
    """Return the shapes of the training state: the same for every batch and way to compute it, and slow to trace."""
    inherited = {name: tree for name, tree in job.parameters().items() if name != NEW}
    return jax.eval_shape(job.training().init, 0, inherited if job.train.start_from else None)


@lru_cache(maxsize=64)
def _state_bytes(job: Job) -> tuple[int, int, int, int]:
    """Return the bytes of all parameters, of trained ones, of the optimizer's state, and of all matrices."""
    state = job.state()
    parameters = (state.params, state.frozen)
    matrices = [leaf for leaf in jax.tree.leaves(parameters) if len(leaf.shape) == 2]
    return tree_bytes(parameters), tree_bytes(state.params), tree_bytes(state.opt_state), tree_bytes(matrices)


def _activation_bytes(job: Job, micro_batch: int) -> int:
    """Return the bytes of the residuals that grow with the windows."""
    one, two = (_residual_bytes(replace(job, batch_size=rows)) for rows in (1, 2))
    return (two - one) * micro_batch


@lru_cache(maxsize=64)
def _residual_bytes(job: Job) -> int:
    """Return the bytes that the backward pass of a batch reads, parameters included."""
    objective = job.training().loss

    def residuals(trained, frozen, batch, key):
        def loss(trained):
            return objective(merge_params(trained, frozen, job.train), batch, key)[0]

        return jax.vjp(loss, trained)[1]

    key, state = jax.eval_shape(lambda: jax.random.key(0)), job.state()
    return tree_bytes(jax.eval_shape(residuals, state.params, state.frozen, job.batch(), key))


@lru_cache(maxsize=64)
def _parameters(model: TransformerConfig, code: OwnCode = OwnCode()) -> Params:  # noqa: B008
    net = model_of(Experiment(model=model, code=code))
    return jax.eval_shape(partial(init_params, net, 0))


def xla_memory(compiled: Compiled) -> dict[str, int]:
    """Return the bytes by XLA's own account of a compiled program; empty if it gives none."""
    analysis = compiled.memory_analysis()
    names = {"argument": "arguments", "output": "outputs", "temp": "temporary", "alias": "reused"}
    sizes = {full: getattr(analysis, f"{name}_size_in_bytes", None) for name, full in names.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def compile_step(job: Job) -> Compiled:
    """Compile the train step for this process's device, from shapes alone."""
    return job.step().lower(job.state(), job.batch()).compile()


def planned_peak(sizes: dict[str, int]) -> int:
    """Return the bytes in use while the program runs; outputs written in place of arguments count once."""
    return sizes["arguments"] + sizes["outputs"] - sizes["reused"] + sizes["temporary"]


def process_peak(sizes: dict[str, int], platform: str) -> int:
    """Return the bytes that a process on this platform needs for arrays while the program runs, about."""
    return round(planned_peak(sizes) * (CPU_SCRATCH if platform == "cpu" else 1))
