"""Our side of `bench` and `profile`: the train step and the sampler, with fresh parameters and random tokens."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.components import computed, dataset_of, model_of, training_of
from zerotollm.data.tokens.utf8 import Utf8Automaton
from zerotollm.decoding import sample
from zerotollm.experiment import Experiment
from zerotollm.host.allocator import reuse_memory
from zerotollm.host.gpu import prepare_gpu
from zerotollm.host.peak_memory import peak_memory_bytes
from zerotollm.model.accelerator import options_to_run_once, this_accelerator
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.device_benchmark import PRODUCT
from zerotollm.planning.flops import head_rows, num_parameters
from zerotollm.planning.memory import xla_memory
from zerotollm.planning.speed import flops_per_token
from zerotollm.run_directory import environment
from zerotollm.session import timed_sides as sides
from zerotollm.session.job import job_for
from zerotollm.training.objectives import Batch
from zerotollm.types import Json


class JaxFacts(TypedDict):
    """What is not measured again and again."""

    environment: Json
    platform: str
    precision: str
    product: int
    """rows of the square matrices of the measurement "product" """
    model: TransformerConfig
    """resolved for the data"""
    parameters: int
    flops_per_token: int
    compile_seconds: float
    """of the train step, without any cache"""
    peak_memory_bytes: int
    """after some steps: of the device, or of the process on a CPU"""
    xla_memory_bytes: dict[str, int] | None
    """planned for the train step"""
    program: str
    """the train step as XLA compiled it (HLO)"""


def jax_side(
    experiment: Experiment,
    *,
    decodes: bool = True,
    shared: bool = False,
    compiler_options: Mapping[str, str | bool] | None = None,
) -> tuple[JaxFacts, sides.Measurements]:
    """Prepare the measurements "train", "product" and, if it `decodes`, those of texts.

    On a `shared` device jax takes memory as needed, instead of nearly all that a GPU has. XLA compiles the train step
    with `compiler_options`. Data is prepared for its vocabulary and labels alone: a resolved model needs none.
    """
    data, train = experiment.data, experiment.train
    reuse_memory(data.batch_size * data.context * experiment.model.width)  # as in training
    if shared:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    prepare_gpu()
    jax.config.update("jax_enable_compilation_cache", False)
    model = experiment.model
    if not model.vocab_size:
        feed = dataset_of(experiment)
        model = replace(model, num_classes=len(feed.labels))
        model = resolve(model, vocab_size=feed.vocab_size, context=data.context)
    vocab_size = model.vocab_size
    experiment = replace(experiment, model=model)
    training, seed = training_of(experiment), np.uint32(train.seed)
    state = jax.jit(training.init, compiler_options=options_to_run_once())(seed, None)
    batches = [
        _batch(experiment, tokens, vocab_size) for tokens in sides.random_tokens(experiment, vocab_size)
    ]
    step = jax.jit(training.train_step, donate_argnums=0)
    began = time.perf_counter()
    compiled = step.lower(state, batches[0], seed).compile(compiler_options=dict(compiler_options or {}))
    compile_seconds = time.perf_counter() - began
    micro_batch = {"inputs": batches[0]["inputs"][: data.batch_size // train.micro_batches]}
    count = 0

    def begin() -> Callable[[], object]:
        nonlocal state, count
        state, metrics = compiled(state, batches[count % sides.BATCHES], seed)
        count += 1
        return partial(jax.block_until_ready, metrics)

    jax.block_until_ready(state)
    sides.paced(begin, 0.0, sides.WARM_UP)
    memory, platform = jax.devices()[0].memory_stats() or {}, jax.default_backend()
    facts: JaxFacts = {
        "environment": environment(),
        "platform": platform,
        "precision": computed(experiment, micro_batch).compute.precision,
        "product": PRODUCT[platform],
        "model": model,
        "parameters": num_parameters(model),
        "flops_per_token": flops_per_token(job_for(experiment, this_accelerator())),
        "compile_seconds": compile_seconds,
        "peak_memory_bytes": memory.get("peak_bytes_in_use") or peak_memory_bytes(),
        "xla_memory_bytes": xla_memory(compiled),
        "program": compiled.as_text() or "",
    }

    params = jax.tree.map(jnp.copy, training.merge(state.params, state.frozen))
    greedy = replace(experiment.sample, prompt="", temperature=0.0)
    net, utf8 = model_of(experiment), Utf8Automaton.of([b" "] * vocab_size)

    def write(texts: sides.Texts) -> None:
        prompts = list(np.random.default_rng(texts.rows).integers(0, vocab_size, (texts.rows, texts.prompt)))
        sampling = replace(greedy, max_tokens=texts.new)
        # No token stops a row.
        written = sample.generate(params, net, prompts, sampling, stop_ids=(), utf8=utf8)
        assert all(len(text) == texts.new for text in written)

    matrix = jnp.ones((facts["product"], facts["product"]), facts["precision"])
    multiply = partial(jnp.matmul, preferred_element_type=jnp.float32)
    product = jax.jit(lambda matrix: multiply(matrix, matrix)).lower(matrix).compile()
    others = {"product": partial(sides.timed, lambda: product(matrix).block_until_ready())}
    if decodes:
        for name, texts in sides.text_measurements(experiment).items():
            others[name] = partial(sides.timed, partial(write, texts))
    for measurement in others.values():
        measurement(0.0)  # compiles
    return facts, {"train": partial(sides.paced, begin), **others}


def _batch(experiment: Experiment, tokens: np.ndarray, vocab_size: int) -> Batch:
    shape = (experiment.data.batch_size, experiment.data.context)
    batch = {
        "inputs": jnp.asarray(tokens[:, :-1], jnp.int32),
        "targets": jnp.asarray(tokens[:, 1:] % head_rows(experiment.model), jnp.int32),
        "weights": jnp.ones(shape, jnp.float32),
    }
    if experiment.model.encoder_layers:  # sources without padding
        return batch | {"sources": jnp.asarray(tokens[:, :0:-1] % (vocab_size - 1) + 1, jnp.int32)}
    return batch | {"segments": jnp.zeros(shape, jnp.int32)}
