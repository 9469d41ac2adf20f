"""What a train step or a server holds in memory, by kind, without allocating it: traced shapes, and XLA's account."""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

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

CPU_SCRATCH = 1.05
"""What a process on a CPU takes while steps run, over what XLA plans: its matrix library packs operands. About the
median of the configurations of tests/bench_plan.py."""
DEEP = 6
"""Layers above which a step is traced as a loop: it keeps about the same, and is traced several times as fast."""


@dataclass(frozen=True)
class Job:
    """All that decides what a train step costs. `model` is resolved."""

    model: TransformerConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    compute: ComputeConfig
    batch_size: int
    """windows per step, over all micro-batches; with an encoder, pairs"""
    context: int
    """tokens in a window; with an encoder, of a source and of a target: the widest bucket needs most"""
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
        """The pure functions of the training."""
        return training_of(self.experiment)

    @property
    def micro_batch(self) -> int:
        """Windows that are in memory at once."""
        return self.batch_size // self.train.micro_batches

    def batch(self, rows: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of so many windows; 0: of a step."""
        other = "sources" if self.model.encoder_layers else "segments"
        types = {"inputs": jnp.int32, "targets": jnp.int32, other: jnp.int32, "weights": jnp.float32}
        shape = (rows or self.batch_size, self.context)
        return {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in types.items()}

    def parameters(self) -> Any:
        """Shapes of all of the model's parameters."""
        return _parameters(self.model, self.code)

    def state(self) -> Any:
        """Shapes of the state of training; a head of labels is one that `train.start_from` does not have."""
        inherited = {name: tree for name, tree in self.parameters().items() if name != NEW}
        return jax.eval_shape(self.training().init, 0, inherited if self.train.start_from else None)

    def step(self) -> Any:
        """The jitted train step."""
        step = self.training().train_step
        return jax.jit(lambda state, batch: step(state, batch, self.train.seed), donate_argnums=0)

    def how(self) -> ComputeConfig:
        """Every choice of a micro-batch made."""
        return computed(self.experiment, self.batch(self.micro_batch)).compute


def tree_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_by_kind(job: Job) -> dict[str, int]:
    """Bytes at the moment when most is held, the end of the last forward pass or the update after it.

    `activations` are what autodiff keeps of one micro-batch for the backward pass, as traced: what grows with the
    number of windows among the residuals of `jax.vjp`. `workspace` is an estimate of what comes and goes, `shared`,
    below 0, what of these is in the place of others.
    """
    how = job.how()
    parameters, trained, optimizer_state, _ = _state_bytes(_state_alone(job))
    losses = {"label_smoothing": job.train.label_smoothing, "z_loss": job.train.z_loss}
    # A loop hides that frozen layers keep nothing.
    loop = how.scan_layers or (job.model.num_layers > DEEP and not trains_subset(job.train))
    window = replace(job, train=replace(_what_is_trained(job.train), **losses))
    window = replace(window, optimizer=OptimizerConfig(), compute=replace(how, scan_layers=loop))
    one, two = (_residual_bytes(replace(window, batch_size=rows)) for rows in (1, 2))
    activations = (two - one) * job.micro_batch
    tokens, V = job.micro_batch * job.context, head_rows(job.model)
    if how.cross_entropy == "chunked":
        held = rows_for(tokens, V) * V
        logits = held * (
            8 if how.precision == "float32" else 10
        )  # with their gradient, in the type of products
        kept = 0
    else:
        kept = _logit_residuals(job)
        logits = kept + tokens * V * 4  # and their gradient
    widest = max(job.model.ff_width, job.model.num_heads * job.model.head_width)
    again = 0
    if (
        how.remat != "none"
    ):  # one block is computed again: what it had not kept is there at once, the logits no more
        plain = replace(window, compute=replace(window.compute, remat="none"))
        one, two = (_residual_bytes(replace(plain, batch_size=rows)) for rows in (1, 2))
        again = ((two - one) * job.micro_batch - activations) // (
            decoder_layers(job.model) + job.model.encoder_layers
        )
        again = max(0, again - logits)
    return {
        "parameters": parameters,
        "gradients": trained * (2 if job.train.micro_batches > 1 else 1),
        "optimizer state": optimizer_state,
        "activations": activations - kept,
        "logits": logits,
        "workspace": 2 * tokens * widest * 4 + copied_matrices(job) + again,
        # Gradients come while activations go; where these are computed again there is less to go.
        "shared": -min(trained, activations - kept + logits) if how.remat == "none" else 0,
    }


def serving_memory(model: TransformerConfig, rows: int, context: int) -> dict[str, int]:
    """Bytes while `rows` texts of at most `context` tokens are written at once (`zerotollm.decoding.continuous`).

    `parameters` are there twice, as loaded and with matrices joined. `workspace` is an estimate: three times the
    attention scores of a part of a prompt or of a step, whichever is more, and logits.
    """
    slots, V = round_up(context, 16), model.vocab_size
    queries = max(rows, min(slots, CHUNK))
    return {
        "parameters": 2 * tree_bytes(_parameters(model)),
        "KV cache": slots * cache_bytes(model, rows),
        "workspace": 3 * 4 * queries * model.num_heads * slots + 4 * (SCORED + rows) * V,
    }


def largest_context(model: TransformerConfig, rows: int, room: float) -> int:
    """The most tokens of a text, a multiple of 16 up to the model's, whose `serving_memory` fits; 0: none."""
    contexts = range(16, model.max_length + 1, 16)
    fitting = bisect_right(contexts, room, key=lambda c: sum(serving_memory(model, rows, c).values()))
    return contexts[fitting - 1] if fitting else 0


def copied_matrices(job: Job) -> int:
    """Bytes of copies of the matrices in the type of products; a loop over layers stacks them in any type."""
    how = job.how()
    *_, matrices = _state_bytes(_state_alone(job))
    return matrices // 2 if how.precision != "float32" else matrices if how.scan_layers else 0


def _state_alone(job: Job) -> Job:
    """The job with one value for all that does not change the size of its state, traced once for many jobs."""
    compute = ComputeConfig(precision=job.how().precision)
    return replace(job, train=_what_is_trained(job.train), batch_size=1, compute=compute)


def _what_is_trained(train: TrainConfig) -> TrainConfig:
    """Of all that decides how a model is trained, only which of its parameters are."""
    parts = ("start_from", "trainable", "lora_rank", "lora_targets")
    return TrainConfig(**{name: getattr(train, name) for name in parts})


@lru_cache(maxsize=64)
def _state_bytes(job: Job) -> tuple[int, int, int, int]:
    """Bytes of parameters, of those of them that are trained, of the optimizer's state, and of the parameters that are
    matrices."""
    state = job.state()
    all_of_them = (state.params, state.frozen)
    matrices = [leaf for leaf in jax.tree.leaves(all_of_them) if len(leaf.shape) == 2]
    return (*map(tree_bytes, (all_of_them, state.params, state.opt_state, matrices)),)


@lru_cache(maxsize=64)
def _residual_bytes(job: Job) -> int:
    """Bytes that the backward pass of a batch is given, parameters included."""
    objective = job.training().loss

    def kept(trained, frozen, batch, key):
        def loss(trained):
            return objective(merge_params(trained, frozen, job.train), batch, key)[0]

        return jax.vjp(loss, trained)[1]

    key, state = jax.eval_shape(lambda: jax.random.key(0)), job.state()
    return tree_bytes(jax.eval_shape(kept, state.params, state.frozen, job.batch(), key))


@lru_cache(maxsize=64)
def _parameters(model: TransformerConfig, code: OwnCode = OwnCode()) -> Params:  # noqa: B008
    net = model_of(Experiment(model=model, code=code))
    return jax.eval_shape(partial(init_params, net, 0))


def _logit_residuals(job: Job) -> int:
    """Of them, bytes that are as large as logits: plain cross-entropy keeps exp(logits)."""
    return job.micro_batch * job.context * head_rows(job.model) * 4


def xla_memory(compiled: Any) -> dict[str, int]:
    """Bytes by XLA's own account of a compiled program; empty where it gives none."""
    analysis = compiled.memory_analysis()
    names = {"argument": "arguments", "output": "outputs", "temp": "temporary", "alias": "reused"}
    sizes = {full: getattr(analysis, f"{name}_size_in_bytes", None) for name, full in names.items()}
    return {name: size for name, size in sizes.items() if size is not None}


def compile_step(job: Job) -> Any:
    """The train step compiled for this process's device, from shapes alone."""
    return job.step().lower(job.state(), job.batch()).compile()


def planned_peak(sizes: dict[str, int]) -> int:
    """Bytes in use while the program runs: state and batch, what is written that is not in their place, and
    temporary buffers."""
    return sizes["arguments"] + sizes["outputs"] - sizes["reused"] + sizes["temporary"]


def process_peak(sizes: dict[str, int], platform: str) -> int:
    """Bytes that a process on this platform is expected to need for arrays while the program runs."""
    return round(planned_peak(sizes) * (CPU_SCRATCH if platform == "cpu" else 1))
