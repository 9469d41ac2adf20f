"""One compiled training for everything that trains: `train`, and in memory `ablate` and `scale`."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Compiled

from zerotollm.components import model_of, training_of
from zerotollm.data.feed import Feed, Shapes
from zerotollm.experiment import Experiment
from zerotollm.host.memory_limit import check_step, limits
from zerotollm.model.accelerator import options_to_run_once
from zerotollm.model.build import Params, init_params
from zerotollm.session.devices import by_shape, compilers
from zerotollm.session.out_of_memory import step_bytes_on_host
from zerotollm.sharding.rules import Placement, check_divides, placed_shapes, shardings
from zerotollm.training.step import EvalStep, TrainState, TrainStep
from zerotollm.types import PyTree


class Program(NamedTuple):
    """A function whose second argument is a batch, with a program for every shape that a batch may have."""

    by_shape: Mapping[tuple[int, ...], Future[Compiled]]
    """being compiled, by the shape of "inputs" in the batch"""

    def compiled(self) -> dict[tuple[int, ...], Compiled]:
        """Wait for the compiler, and return the programs by the same shapes."""
        return {shape: future.result() for shape, future in self.by_shape.items()}

    def result(self) -> Callable[..., PyTree]:
        """Wait for the compiler, and return the function."""
        compiled = self.compiled()
        return lambda first, batch, *rest: compiled[batch["inputs"].shape](first, batch, *rest)


@dataclass(frozen=True)
class CompiledTraining:
    """The functions of one experiment, compiled for its batches and mesh, for any seed."""

    experiment: Experiment
    """with its model resolved"""
    feed: Feed
    placement: Placement
    num_vmapped_seeds: int
    """seeds that train at once, on a new first axis of state, batch and seed; 0: one, without vmap"""
    init: Callable[..., TrainState]
    """(seed, parameters of another run or None) -> state"""
    merge: Callable[[Params, Params | None], Params]
    """(trainable, frozen) -> all parameters, of one seed"""
    abstract_params: Params
    """shapes and shardings of all parameters, of one seed"""
    abstract_state: TrainState
    """shapes and shardings of the state"""
    train_program: Program
    _compile_evaluation: Callable[[], Program]

    def train_step(self) -> TrainStep:
        """Wait for the compiler, and return (state, batch, seed) -> (state, metrics), which consumes its state."""
        return self.train_program.result()

    def compile_eval_step(self) -> Callable[[], EvalStep]:
        """Start to compile, and return a function that waits and returns (params, batch) -> sums, of one seed."""
        return self._compile_evaluation().result

    @property
    def num_parameters(self) -> int:
        """All parameters of one seed."""
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self.abstract_params))

    @property
    def trainable_parameters(self) -> int:
        """Those of one seed that are trained."""
        lead = 1 if self.num_vmapped_seeds else 0
        return sum(math.prod(x.shape[lead:]) for x in jax.tree.leaves(self.abstract_state.params))


def compile_training(
    experiment: Experiment,
    feed: Feed,
    placement: Placement,
    init_from: Params | None = None,
    num_vmapped_seeds: int = 0,
) -> CompiledTraining:
    """Start to compile the train step of an experiment, its model resolved, in other threads.

    `init_from` gives the shapes of parameters of another run. Raises UsageError where the mesh does not divide the
    model, RunError where a memory limit of the process does not hold a step.
    """
    if limits():
        check_step(step_bytes_on_host(experiment))
    training = training_of(experiment, feed.tokenizer.pad_id)
    init, step, seeds, mesh = training.init, training.train_step, num_vmapped_seeds, placement.mesh
    if seeds:
        init, step = jax.vmap(init, in_axes=(0, None)), jax.vmap(step)
    params = jax.eval_shape(lambda: init_params(model_of(experiment), 0))
    model = experiment.model
    check_divides(params, placement.shape, heads=(model.num_heads, model.num_kv_heads))
    params = placed_shapes(params, mesh)
    seed = jax.ShapeDtypeStruct((seeds,) if seeds else (), jnp.uint32)
    state = placed_shapes(jax.eval_shape(init, seed, init_from), mesh, seeds)
    state_shardings = shardings(state, mesh, seeds)
    everywhere = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, everywhere))
    merge = training.merge
    if seeds or state.frozen is not None:
        merge = jax.jit(merge, out_shardings=shardings(params, mesh))
    threads = compilers()

    def shapes(batch: Shapes) -> Mapping[str, jax.ShapeDtypeStruct]:
        return placement.shapes(batch, seeds)

    train_programs = by_shape(
        threads, lambda batch: jitted.lower(state, batch, seed), [*map(shapes, feed.training_shapes)]
    )

    def compile_evaluation() -> Program:
        # Where there are many, those that seldom run are compiled in half the time.
        options = options_to_run_once() if len(feed.evaluation_shapes) > 1 and not seeds else None
        lower = partial(jax.jit(training.eval_step).lower, params)
        programs = by_shape(threads, lower, [*map(placement.shapes, feed.evaluation_shapes)], options)
        threads.shutdown(wait=False)
        return Program(programs)

    return CompiledTraining(
        experiment,
        feed,
        placement,
        seeds,
        jax.jit(init, compiler_options=options_to_run_once(), out_shardings=state_shardings),
        merge,
        params,
        state,
        Program(train_programs),
        compile_evaluation,
    )
