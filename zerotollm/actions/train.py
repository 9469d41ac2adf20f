"""train: data, model, optimizer, initialize or resume, loop, summary. Run again, it resumes; finished, it says so."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from zerotollm import run_directory
from zerotollm.components import model_of
from zerotollm.console import Console
from zerotollm.decoding.text import sample_text
from zerotollm.evaluation.loss import evaluate_feed
from zerotollm.evaluation.translation_report import with_prompt
from zerotollm.experiment import Experiment, translates
from zerotollm.host.allocator import return_freed_memory
from zerotollm.host.memory_limit import check_libraries
from zerotollm.host.stop_signals import StoppedError, stop_requests
from zerotollm.model.accelerator import this_accelerator
from zerotollm.session.compiled_training import CompiledTraining, compile_training
from zerotollm.session.data import load_data, pinned_data
from zerotollm.session.devices import computing_on_mesh, mesh_lines
from zerotollm.session.job import job_for
from zerotollm.session.out_of_memory import out_of_memory_explained
from zerotollm.session.progress import Clock, Display
from zerotollm.session.promise import promise
from zerotollm.session.resume import initialize_or_resume
from zerotollm.session.run_log import RunLog, Validation
from zerotollm.session.summary import Summary, commands, rows, write_summary
from zerotollm.session.warm_start import warm_start
from zerotollm.sharding.processes import is_first, on_first, stop_requested, together
from zerotollm.training.checkpoints import CheckpointWriter
from zerotollm.training.config import TrainConfig, due
from zerotollm.training.prefetch import prefetched
from zerotollm.training.step import EvalStep, TrainState


def train(experiment: Experiment, run_dir: Path) -> Summary:
    """Train in `run_dir`, resuming where the last process there stopped, and return the final numbers.

    Killed at any moment and started again, it ends with the same parameters and metrics, bit for bit, as if it had
    never been killed (on a CPU, with one version of jax). At most `checkpoint_every` steps are lost, 5 % more if it
    was saving. SIGTERM, Ctrl-C or a closed terminal saves and raises StoppedError. Raises UsageError where the
    directory belongs to another experiment, RunError where another process writes there, the disk is full, memory does
    not suffice or the loss is no longer finite.
    """
    began, config = Clock.now(), experiment.train
    with _claimed(experiment, run_dir) as (experiment, summary, display), ExitStack() as stack:
        if summary is None:
            stack.enter_context(out_of_memory_explained(experiment, run_dir))
            placement = stack.enter_context(computing_on_mesh(experiment))

            # Text becomes batches; the model gets its sizes; the step is compiled while the state is made or restored.
            feed = load_data(experiment, run_dir, display)
            start = warm_start(experiment, feed)
            training = compile_training(start.experiment, feed, placement, start.params)
            state, first, notes = initialize_or_resume(training, start, run_dir, display)
            eval_step = training.compile_eval_step()
            _describe(training, first, display)
            evaluate, sample = partial(_evaluate, training, eval_step), partial(_sample, training)

            with ExitStack() as loop:
                log = RunLog(run_dir, experiment, feed, display, first, notes, began)
                loop.enter_context(closing(log))
                writer = loop.enter_context(closing(_checkpoint_writer(run_dir, config)))
                stop = [] if together() else loop.enter_context(stop_requests(hangup=True))
                batches = loop.enter_context(_batches(training, first))
                train_step = training.train_step()
                on_first(partial(promise, run_dir, training, first, began, display))
                if start.run and not (first or feed.labels):
                    log.before(partial(evaluate, state))
                log.begin(first)
                for step, batch in enumerate(batches, first + 1):
                    state, metrics = train_step(state, batch, np.uint32(config.seed))
                    log.step(step, metrics)
                    best = False
                    if due(step, config.steps, config.eval_every):
                        best = log.validation(step, partial(evaluate, state))
                    if due(step, config.steps, config.sample_every) and not feed.labels:
                        log.sample(step, partial(sample, state))
                    stopping = step < config.steps and (stop_requested(step) if together() else bool(stop))
                    if due(step, config.steps, config.checkpoint_every) or best or stopping:
                        log.save(writer, state, step)
                    log.limit_lead(writer, step)
                    if stopping:
                        raise _stopped(stop, step, config.steps, run_dir)
            summary = on_first(partial(write_summary, run_dir, training, log.notes))
        display.table(rows(summary), commands(experiment, run_dir, summary.get("example", "")))
        return summary


@contextmanager
def _claimed(experiment: Experiment, run_dir: Path) -> Iterator[tuple[Experiment, Summary | None, Display]]:
    """Hold the lock on `run_dir` for this experiment; give it with its places, and the summary of a finished run."""
    experiment = with_prompt(pinned_data(experiment), run_dir)
    with ExitStack() as stack:
        display = stack.enter_context(Display(experiment.train.steps, Console(quiet=not is_first())))

        def claim() -> Summary | None:
            stack.enter_context(run_directory.locked(run_dir))
            run_directory.claim(run_dir, experiment)
            return run_directory.read_summary(run_dir)

        summary = on_first(claim)
        if summary is None:
            check_libraries()
        else:
            display.say(f"{run_dir} is finished; --run-dir DIR starts another run")
        yield run_directory.located(run_dir, experiment), summary, display


def _describe(training: CompiledTraining, first: int, display: Display) -> None:
    """Say how the model is computed, its size and that of the data."""
    experiment, feed = training.experiment, training.feed
    for line in mesh_lines(training.abstract_params, training.placement.shape):
        display.say(line)
    compute = job_for(experiment, this_accelerator()).compute
    display.say(
        f"computed in {compute.precision} on {this_accelerator().kind}, attention {compute.attention}, "
        f"cross-entropy {compute.cross_entropy}, remat {compute.remat}"
    )
    trainable = training.trainable_parameters
    part = f", of which {trainable:,} are trained" if trainable != training.num_parameters else ""
    tokens = experiment.train.steps * (1 - experiment.data.replay) * feed.tokens_per_step
    epochs = [f"{tokens * s.share / s.tokens:.2g} epochs of {s.corpus}" for s in feed.sources]
    epochs = epochs or [f"{tokens / feed.tokens:.1f} epochs"]
    display.say(
        f"{training.num_parameters:,} parameters{part}; {feed.tokens:,} {'labels' if feed.labels else 'tokens'} to "
        f"train on, {', '.join(epochs)}" + (f"; resuming after step {first}" if first else "")
    )


def _checkpoint_writer(run_dir: Path, config: TrainConfig) -> CheckpointWriter:
    regular = partial(due, steps=config.steps, every=config.checkpoint_every)
    return CheckpointWriter(run_dir / run_directory.CHECKPOINTS, max(config.keep, config.average), regular)


def _batches(training: CompiledTraining, first: int) -> closing:
    """Return the batches after step `first`, made ahead of the device by a thread of their own."""
    config, placement = training.experiment.train, training.placement
    index, count = placement.part
    dataset = training.feed.training(seed=config.seed, process_index=index, process_count=count)
    return closing(prefetched(dataset, first, config.steps, placement.place_part))


def _evaluate(training: CompiledTraining, eval_step: Callable[[], EvalStep], state: TrainState) -> Validation:
    """Return the loss over the validation split, and over that of `data.old`, where there is one."""
    params, feed = training.merge(state.params, state.frozen), training.feed
    measured = evaluate_feed(eval_step(), params, feed, "validation", training.placement)
    return_freed_memory()  # the first time much is the compiler's
    if feed.lost.get("validation"):
        measured["lost"] = feed.lost["validation"]
    if feed.old:
        old = evaluate_feed(eval_step(), params, feed.old, "validation", training.placement)
        measured["old_bpb"] = old["bpb"]
    return measured


def _sample(training: CompiledTraining, state: TrainState) -> str:
    experiment, params = training.experiment, training.merge(state.params, state.frozen)
    net, tokenizer = model_of(experiment), training.feed.tokenizer
    text = sample_text(params, net, tokenizer, experiment.sample, translates=translates(experiment))
    return_freed_memory()
    return text


def _stopped(stop: list[int], step: int, steps: int, run_dir: Path) -> StoppedError:
    number = stop[0] if stop else signal.SIGTERM
    words = f"stopped at step {step} of {steps} and saved in {run_dir}; the same command resumes it"
    return StoppedError(words, number)
