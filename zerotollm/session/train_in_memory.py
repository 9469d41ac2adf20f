"""fit: an experiment trained in memory, for measuring: no run directory, no samples, no checkpoints.

Several seeds can train at once, as one program (`jax.vmap`), with the results of one at a time.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zerotollm.errors import DivergedError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.model.config import TransformerConfig
from zerotollm.session.data import feed_of


@dataclass(frozen=True)
class Fitted:
    """One seed of an experiment, trained to its last step."""

    seed: int
    params: Any
    """nested dict of float32 arrays"""
    losses: list[float]
    """training loss of every step, nats per token"""
    validation: dict[str, float | int]
    """`loss`, `bpb`, `tokens` and `bytes` of `zerotollm.evaluation.loss.evaluate_batches`"""
    step_seconds: float
    """spent in steps, from the second on; of all seeds together where they trained at once"""
    tokens_per_second: float
    """in steps, from the second on; of this seed alone"""
    trained_parameters: int | None = None
    """of this seed, those that are not frozen"""
    step_bytes: int | None = None
    """of memory that a step takes by XLA's account, of all seeds that trained at once"""


@dataclass(frozen=True)
class Programs:
    """An experiment's data, and its step compiled for any seed: compile once, fit many seeds."""

    experiment: Experiment
    feed: Any
    """zerotollm.data.feed.Feed"""
    model: TransformerConfig
    """resolved"""
    placement: Any
    """zerotollm.sharding.rules.Placement: that of `train.mesh`, or else the first device"""
    num_vmapped_seeds: int
    """seeds that train at once; 0: one, without vmap"""
    init: Callable[..., Any]
    """seed [num_vmapped_seeds] -> state"""
    step: Callable[..., Any]
    """state, batch, seed -> state, metrics"""
    evaluate: Callable[..., Any]
    """params, batch -> nats and tokens, of a single lane"""
    merge_params: Callable[..., Any]
    """what is trained, what is not -> all parameters, of a single lane"""
    compile_seconds: float
    trained_parameters: int
    """of one lane"""
    step_bytes: int
    """of memory that a step takes, by XLA's account; of all num_vmapped_seeds"""


def compile_programs(experiment: Experiment, num_vmapped_seeds: int = 0) -> Programs:
    """Prepares the data and compiles. Raises UsageError where the experiment cannot be run."""
    import jax
    import jax.numpy as jnp

    from zerotollm.model.accelerator import options_to_run_once
    from zerotollm.planning.memory import planned_peak, xla_memory
    from zerotollm.session.devices import by_shape, check_rows, compilers, reading_on_mesh
    from zerotollm.session.warm_start import beginning_of, step_options
    from zerotollm.sharding.rules import check_divides, placed_shapes, shardings
    from zerotollm.training.lora import merge_params
    from zerotollm.training.step import init_params, init_state, make_eval_step, seeded_train_step

    train = experiment.train
    feed = feed_of(experiment)
    if num_vmapped_seeds and len(feed.training_shapes) > 1:
        raise UsageError("--together trains on batches of one shape, and pairs come in several: leave it out")
    beginning = beginning_of(experiment, feed)
    model = beginning.model
    init = partial(
        init_state, model, experiment.optimizer, train, compute=experiment.compute, given=beginning.params
    )
    how = step_options(experiment, feed)
    step = seeded_train_step(model, experiment.optimizer, train, **how)
    if num_vmapped_seeds:
        init, step = jax.vmap(init), jax.vmap(step)
    lead = (num_vmapped_seeds,) if num_vmapped_seeds else ()
    seed = jax.ShapeDtypeStruct(lead, jnp.uint32)

    begun = time.monotonic()
    with reading_on_mesh(experiment) as read:
        placement = replace(read, micro_batches=train.micro_batches)
        mesh = placement.mesh
        check_rows(experiment, placement.shape)
        params = jax.eval_shape(lambda: init_params(model, 0))
        check_divides(params, placement.shape, heads=(model.num_heads, model.num_kv_heads))
        params = placed_shapes(params, mesh)
        state = placed_shapes(jax.eval_shape(init, seed), mesh, num_vmapped_seeds)
        places = shardings(state, mesh, num_vmapped_seeds)
        make_state = jax.jit(init, compiler_options=options_to_run_once(), out_shardings=places)
        make_state = make_state.lower(seed).compile()
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere))

        def training(about: dict[str, Any]) -> dict[str, Any]:
            return (
                placement.stacked_shapes(about, num_vmapped_seeds)
                if num_vmapped_seeds
                else placement.shapes(about)
            )

        eval_step = make_eval_step(model, **how)
        with compilers() as threads:
            to_train = by_shape(
                threads,
                lambda batch: jitted.lower(state, batch, seed),
                [*map(training, feed.training_shapes)],
            )
            to_evaluate = by_shape(
                threads, partial(eval_step.lower, params), [*map(placement.shapes, feed.evaluation_shapes)]
            )
        steps, evaluations = (
            {size: program.result() for size, program in programs.items()}
            for programs in (to_train, to_evaluate)
        )
        whole_of = jax.jit(partial(merge_params, train=train), out_shardings=shardings(params, mesh))

    def train_step(state: Any, batch: dict[str, Any], seed: Any) -> Any:
        return steps[batch["inputs"].shape](state, batch, seed)

    def evaluate(params: Any, batch: dict[str, Any]) -> Any:
        return evaluations[batch["inputs"].shape](params, batch)

    seconds = time.monotonic() - begun
    programs = (make_state, train_step, evaluate, whole_of)
    memory = [planned_peak(xla_memory(compiled)) for compiled in steps.values()]
    trained = sum(math.prod(x.shape[len(lead) :]) for x in jax.tree.leaves(state.params))
    return Programs(
        experiment, feed, model, placement, num_vmapped_seeds, *programs, seconds, trained, max(memory)
    )


def fit(
    programs: Programs, seeds: Sequence[int], progress: Callable[[int], None] = lambda step: None
) -> list[Fitted]:
    """Trains `seeds` (as many as the programs have num_vmapped_seeds; one without) and validates each.

    A seed decides initialization, data order and dropout, exactly as `train.seed` does in `train`.
    `progress(step)` is called after every step, and a step or two before the device has done it. Raises
    DivergedError where a loss, that of validation too, is no longer finite.
    """
    import jax
    import numpy as np

    from zerotollm.evaluation.loss import evaluate_batches
    from zerotollm.training.prefetch import prefetched

    if len(seeds) != max(1, programs.num_vmapped_seeds):
        raise ValueError(f"{len(seeds)} seeds for {max(1, programs.num_vmapped_seeds)} num_vmapped_seeds")
    feed, train = programs.feed, programs.experiment.train
    datasets = [feed.training(seed=seed) for seed in seeds]
    if programs.num_vmapped_seeds:
        seed = np.asarray(seeds, np.uint32)
        batches = _Stacked(datasets)
    else:
        seed = np.uint32(seeds[0])
        batches = datasets[0]
    place = programs.placement.place_stacked if programs.num_vmapped_seeds else programs.placement.place_part
    state = programs.init(seed)
    losses = []
    begun = time.monotonic()
    for step, batch in enumerate(prefetched(batches, 0, train.steps, place), 1):
        state, metrics = programs.step(state, batch, seed)
        losses.append(metrics["loss"])
        if step == 1:
            jax.block_until_ready(losses)
            begun = time.monotonic()
        elif step > 2:
            losses[-3] = np.asarray(losses[-3])
            _check(losses[-3], step - 2)
        progress(step)
    losses_SN = np.stack([np.asarray(loss) for loss in losses], axis=-1).reshape(len(seeds), -1)
    _check(losses_SN, train.steps)
    seconds = time.monotonic() - begun
    speed = (train.steps - 1) * feed.tokens_per_step / max(seconds, 1e-9)
    fitted = []
    for lane, number in enumerate(seeds):
        own = jax.tree.map(lambda x, lane=lane: x[lane], state) if programs.num_vmapped_seeds else state
        params = programs.merge_params(own.params, own.frozen)
        validation = evaluate_batches(
            programs.evaluate,
            params,
            map(programs.placement.place_whole, feed.evaluation("validation")),
            num_bytes=feed.num_bytes["validation"],
        )
        size = (programs.trained_parameters, programs.step_bytes)
        fitted.append(Fitted(number, params, losses_SN[lane].tolist(), validation, seconds, speed, *size))
    return fitted


@dataclass(frozen=True)
class _Stacked:
    """Batches of several seeds as one, with the seeds on a new first axis."""

    datasets: list[Any]

    def __getitem__(self, step: int) -> dict[str, Any]:
        import numpy as np

        batches = [dataset[step] for dataset in self.datasets]
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _check(loss: Any, step: int) -> None:
    import numpy as np

    if not np.isfinite(loss).all():
        raise DivergedError(f"the loss was no longer finite by step {step}: lower optimizer.learning_rate")
