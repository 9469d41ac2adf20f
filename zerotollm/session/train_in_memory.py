"""An experiment trained in memory, for measuring: no run directory, no samples, no checkpoints.

Several seeds can train at once, as one program (`jax.vmap`), with the results of one at a time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from zerotollm.components import dataset_of
from zerotollm.data.batches.mixtures import stacked
from zerotollm.data.feed import Feed
from zerotollm.errors import DivergedError, UsageError
from zerotollm.evaluation.loss import evaluate_feed
from zerotollm.experiment import Experiment
from zerotollm.model.build import Params
from zerotollm.planning.memory import planned_peak, xla_memory
from zerotollm.randomness import Seed
from zerotollm.session.compiled_training import CompiledTraining, compile_training
from zerotollm.session.devices import check_rows, reading_on_mesh
from zerotollm.session.warm_start import warm_start
from zerotollm.training.prefetch import prefetched
from zerotollm.training.step import EvalStep, TrainState, TrainStep


@dataclass(frozen=True)
class Fitted:
    """One seed of an experiment, trained to its last step."""

    seed: int
    params: Params
    losses: list[float]
    """training loss of every step, nats per token"""
    validation: dict[str, float | int]
    """`loss`, `bpb`, `tokens` and `bytes` of `zerotollm.evaluation.loss.evaluate_batches`"""
    step_seconds: float
    """spent in steps, from the second on; of all seeds together where they trained at once"""
    tokens_per_second: float
    """in steps, from the second on; of this seed alone"""
    trained_parameters: int | None = None
    """trainable parameters of this seed"""
    step_bytes: int | None = None
    """memory of a step by XLA's account, of all seeds that trained at once"""


@dataclass(frozen=True)
class Programs:
    """An experiment's data, and its training compiled for any seed: compile once, fit many seeds."""

    training: CompiledTraining
    train_step: TrainStep
    eval_step: EvalStep
    init_from: Params | None
    compile_seconds: float
    step_bytes: int
    """memory of a step by XLA's account, of all seeds"""

    @property
    def experiment(self) -> Experiment:
        """The experiment, its model resolved."""
        return self.training.experiment

    @property
    def feed(self) -> Feed:
        return self.training.feed

    def init(self, seed: Seed) -> TrainState:
        """Return the state before the first step."""
        return self.training.init(seed, self.init_from)


def compile_programs(experiment: Experiment, num_vmapped_seeds: int = 0) -> Programs:
    """Prepare the data and compile. Raises UsageError where the experiment cannot be run."""
    feed = dataset_of(experiment)
    if num_vmapped_seeds and len(feed.training_shapes) > 1:
        raise UsageError("--together trains on batches of one shape, and pairs come in several: leave it out")
    start = warm_start(experiment, feed)
    began = time.monotonic()
    with reading_on_mesh(experiment) as placement:
        placement = replace(placement, micro_batches=experiment.train.micro_batches)
        check_rows(experiment, placement.shape)
        training = compile_training(start.experiment, feed, placement, start.params, num_vmapped_seeds)
        eval_step = training.compile_eval_step()
        train_step = training.train_step()
        compiled = training.train_program.compiled().values()
        step_bytes = max(planned_peak(xla_memory(program)) for program in compiled)
        return Programs(training, train_step, eval_step(), start.params, time.monotonic() - began, step_bytes)


def fit(
    programs: Programs, seeds: Sequence[int], progress: Callable[[int], None] = lambda step: None
) -> list[Fitted]:
    """Train `seeds` (as many as are vmapped; one without vmap) and validate each.

    A seed decides initialization, data order and dropout, exactly as `train.seed` does in `train`.
    `progress(step)` is called after every step, a step or two before the device has done it. Raises DivergedError
    where a loss, that of validation too, is no longer finite.
    """
    training, vmapped = programs.training, programs.training.num_vmapped_seeds
    if len(seeds) != max(1, vmapped):
        raise ValueError(f"{len(seeds)} seeds for programs of {max(1, vmapped)}")
    feed, steps, placement = training.feed, training.experiment.train.steps, training.placement
    datasets = [feed.training(seed=seed) for seed in seeds]
    batches = stacked(datasets) if vmapped else datasets[0]
    seed = np.asarray(seeds, np.uint32) if vmapped else np.uint32(seeds[0])
    place = placement.place_stacked if vmapped else placement.place_part
    state = programs.init(seed)
    losses = []
    began = time.monotonic()
    for step, batch in enumerate(prefetched(batches, 0, steps, place), 1):
        state, metrics = programs.train_step(state, batch, seed)
        losses.append(metrics["loss"])
        if step == 1:
            jax.block_until_ready(losses)
            began = time.monotonic()
        elif step > 2:
            losses[-3] = np.asarray(losses[-3])
            _check(losses[-3], step - 2)
        progress(step)
    losses_SN = np.stack([np.asarray(loss) for loss in losses], axis=-1).reshape(len(seeds), -1)
    _check(losses_SN, steps)
    seconds = time.monotonic() - began
    speed = (steps - 1) * feed.tokens_per_step / max(seconds, 1e-9)
    fitted = []
    for number, seed in enumerate(seeds):
        one = jax.tree.map(lambda x, number=number: x[number], state) if vmapped else state
        params = training.merge(one.params, one.frozen)
        validation = evaluate_feed(programs.eval_step, params, feed, "validation", placement)
        sizes = training.trainable_parameters, programs.step_bytes
        fitted.append(Fitted(seed, params, losses_SN[number].tolist(), validation, seconds, speed, *sizes))
    return fitted


def _check(loss: np.ndarray, step: int) -> None:
    if not np.isfinite(loss).all():
        raise DivergedError(f"the loss was no longer finite by step {step}: lower optimizer.learning_rate")
