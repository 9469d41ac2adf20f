"""train: prepare the data, train or go on, validate, sample, save; run again = resume; finished = says so."""

import json
import math
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from zerotollm import run_directory
from zerotollm.errors import RunError
from zerotollm.evaluation.translation_report import with_prompt
from zerotollm.experiment import Experiment, translates
from zerotollm.host.atomic_files import write_atomically
from zerotollm.host.memory_limit import check_libraries, check_step, limits
from zerotollm.host.stop_signals import StoppedError, stop_requests
from zerotollm.model.config import TransformerConfig
from zerotollm.session.data import feed_of
from zerotollm.session.devices import by_shape, compilers, computing_on_mesh, mesh_lines
from zerotollm.session.job import job_for
from zerotollm.session.out_of_memory import out_of_memory_explained, step_bytes_on_host
from zerotollm.session.progress import Display, Pace, console_of
from zerotollm.session.summary import commands, rows, summarize
from zerotollm.session.warm_start import beginning_of, step_options
from zerotollm.sharding.processes import is_first, on_first, stop_requested, together
from zerotollm.training.config import due


def train(experiment: Experiment, run_dir: Path) -> dict[str, Any]:
    """Trains in `run_dir`, from where the last process there stopped, and returns the final numbers.

    Killed at any moment and started again, it ends with the same parameters and metrics, bit for bit, as if it had
    never been killed (on a CPU, with one version of jax). A kill costs at most `checkpoint_every` steps, or where it
    meets a save under way a twentieth more, for no step is begun beyond that. SIGTERM, Ctrl-C or a closed terminal
    saves and raises StoppedError. Raises UsageError where the directory belongs to another experiment, RunError where
    another process writes there, the disk is full, a limit on memory does not suffice or the loss is no longer finite.
    """
    begun = time.monotonic()
    experiment = with_prompt(experiment, run_dir)
    with ExitStack() as stack:
        display = stack.enter_context(Display(experiment.train.steps, console_of(is_first())))

        def claimed() -> dict[str, Any] | None:
            stack.enter_context(run_directory.locked(run_dir))
            run_directory.claim(run_dir, experiment)
            return run_directory.read_summary(run_dir)

        summary = on_first(claimed)
        experiment = run_directory.located(run_dir, experiment)
        if summary is None:
            check_libraries()
            with out_of_memory_explained(experiment, run_dir), computing_on_mesh(experiment) as placement:
                run = _prepare(experiment, run_dir, display, placement)
                notes = _train(run, display, begun)

            def finished() -> dict[str, Any]:
                summary = summarize(run_dir, notes, run.num_parameters, run.trained_parameters, run.feed.byte)
                write_atomically(run_dir / run_directory.SUMMARY, json.dumps(summary, indent=2) + "\n")
                return summary

            summary = on_first(finished)
        else:
            display.say(f"{run_dir} is finished; --run-dir DIR starts another run")
        display.table(rows(summary), commands(experiment, run_dir))
        return summary


@dataclass(frozen=True)
class Prepared:
    """All that a loop needs to begin."""

    experiment: Experiment
    run_dir: Path
    feed: Any
    """zerotollm.data.feed.Feed"""
    placement: Any
    """zerotollm.sharding.rules.Placement"""
    model: TransformerConfig
    """resolved"""
    train_step: Callable[[], Callable[..., Any]]
    """gives the compiled step; waits for the compiler"""
    eval_step: Callable[[], Callable[..., Any]]
    """likewise"""
    state: Any
    """TrainState after `start` steps"""
    start: int
    notes: dict[str, Any]
    """what the host remembers beside the state; see `_train`"""
    num_parameters: int
    trained_parameters: int
    merge_params: Callable[[Any], Any]
    """state -> all parameters of the model"""
    begun_with: Any
    """zerotollm.run.Run whose parameters training began with, or None"""


def _prepare(experiment: Experiment, run_dir: Path, display: Display, placement: Any) -> Prepared:
    """Data, model and state; the steps compile in other threads meanwhile."""
    shape = experiment.data
    # Imported here: nobody should wait for jax to hear that a run is finished or belongs to someone else.
    import jax

    from zerotollm.data.feed import EXAMPLES
    from zerotollm.model.accelerator import options_to_run_once, this_accelerator
    from zerotollm.planning.device_benchmark import trouble_here
    from zerotollm.run import cache_compiled_programs
    from zerotollm.sharding.rules import check_divides, place_tree, placed_shapes, shardings
    from zerotollm.training import checkpoints
    from zerotollm.training.lora import merge_params, partition
    from zerotollm.training.parameter_transfer import fingerprint
    from zerotollm.training.step import init_params, init_state, make_eval_step, make_train_step

    cache_compiled_programs(shape)
    trouble = trouble_here()
    if trouble:
        display.say(trouble)
    display.say(f"data: {shape.corpus}")
    if not experiment.train.start_from and (shape.old or experiment.train.objective in EXAMPLES):
        display.say(
            "without --init-from it trains from nothing; --init-from runs/base begins with what base learned"
        )
    feed = feed_of(experiment, progress=display.preparing)
    if feed.dropped:
        display.say(f"left out of {feed.corpus}: {feed.dropped}")
    if translates(experiment) and experiment.sample.prompt:
        display.say(f"samples translate: {experiment.sample.prompt}")
    texts, tokens = (sum(counts) for counts in zip((0, 0), *feed.cut.values(), strict=True))
    if texts:
        display.say(
            f"cut to data.context {shape.context}: {texts:,} texts, {tokens:,} tokens of them are not read"
        )
    beginning = beginning_of(experiment, feed)
    model = beginning.model
    on_first(lambda: _describe(experiment, feed, run_dir))

    quick = options_to_run_once()
    mesh = placement.mesh
    init = partial(init_state, model, experiment.optimizer, experiment.train, compute=experiment.compute)
    abstract_params = jax.eval_shape(lambda: init_params(model, 0))
    check_divides(abstract_params, placement.shape, heads=(model.num_heads, model.num_kv_heads))
    abstract_params = placed_shapes(abstract_params, mesh)
    abstract_state = placed_shapes(jax.eval_shape(init, given=beginning.params), mesh)
    state_shardings = shardings(abstract_state, mesh)
    make_state = jax.jit(init, compiler_options=quick, out_shardings=state_shardings)
    for line in mesh_lines(abstract_params, placement.shape):
        display.say(line)
    how = step_options(experiment, feed)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    out_shardings = (state_shardings, everywhere)
    if limits():
        check_step(step_bytes_on_host(replace(experiment, model=model)))
    step = make_train_step(model, experiment.optimizer, experiment.train, **how, out_shardings=out_shardings)
    evaluate = make_eval_step(model, **how)
    chosen = job_for(replace(experiment, model=model), this_accelerator()).compute
    display.say(
        f"computed in {chosen.precision} on {this_accelerator().kind}, attention {chosen.attention}, "
        f"cross-entropy {chosen.cross_entropy}, remat {chosen.remat}"
    )
    threads = compilers()
    training_shapes, evaluation_shapes = (
        [placement.shapes(about) for about in shapes]
        for shapes in (feed.training_shapes, feed.evaluation_shapes)
    )
    train_step = when_compiled(by_shape(threads, partial(step.lower, abstract_state), training_shapes))

    directory = run_dir / run_directory.CHECKPOINTS
    intact = on_first(lambda: getattr(checkpoints.newest_intact(directory, display.say), "step", None))
    checkpoint = None if intact is None else checkpoints.of_step(directory, intact)
    frozen = None
    if abstract_state.frozen is not None:
        _, frozen = partition(beginning.params, experiment.train.trainable)
    if checkpoint:
        # Earlier versions noted neither.
        notes = {"before": None, "frozen": None} | checkpoint.manifest()["notes"]
        if notes["text"] != feed.fingerprint:
            raise RunError(
                f"the text of {shape.corpus} has changed since {run_dir} was begun: "
                "bring the text back, or train anew with another --run-dir"
            )
        if notes["frozen"] != fingerprint(frozen):
            raise RunError(
                f"{experiment.train.start_from} has changed since {run_dir} was begun with it: bring it back, or "
                "train anew with another --run-dir"
            )
        state = abstract_state._replace(
            **checkpoints.restore(checkpoint, abstract_state.saved()),
            frozen=frozen and place_tree(frozen, mesh),
        )
    else:
        state = make_state(given=beginning.params and place_tree(beginning.params, mesh))
        if beginning.run:
            display.say(f"begins with {beginning.run!r}")
        notes = {"losses": [], "step_seconds": 0.0, "seconds": 0.0, "validation": None, "before": None}
        notes["frozen"] = fingerprint(frozen)
    # Only now: what is needed first should be waited for least.
    # Where there are many, those that seldom run are compiled in half the time.
    lower = partial(evaluate.lower, abstract_params)
    options = quick if len(feed.evaluation_shapes) > 1 else None
    eval_step = when_compiled(by_shape(threads, lower, evaluation_shapes, options))
    threads.shutdown(wait=False)
    start = checkpoint.step if checkpoint else 0
    num_parameters, trained = (
        sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
        for tree in (abstract_params, abstract_state.params)
    )
    part = f", of which {trained:,} are trained" if trained != num_parameters else ""
    kind = "labels" if feed.labels else "tokens"
    new_steps = experiment.train.steps * (1 - shape.replay)
    display.say(
        f"{num_parameters:,} parameters{part}; {feed.tokens:,} {kind} to train on, seen "
        f"{new_steps * feed.tokens_per_step / feed.tokens:.1f} times"
        + (f"; going on after step {start}" if start else "")
    )
    return Prepared(
        experiment,
        run_dir,
        feed,
        placement,
        model,
        train_step,
        eval_step,
        state,
        start,
        notes,
        num_parameters,
        trained,
        jax.jit(lambda state: merge_params(state.params, state.frozen, experiment.train))
        if abstract_state.frozen is not None
        else lambda state: state.params,
        beginning.run,
    )


def _describe(experiment: Experiment, feed: Any, run_dir: Path) -> None:
    """Writes what belongs to the run besides what is trained."""
    feed.tokenizer.save(run_dir / run_directory.TOKENIZER)
    if feed.labels:
        write_atomically(run_dir / run_directory.LABELS, json.dumps(feed.labels, ensure_ascii=False) + "\n")
    known = run_directory.environment() | run_directory.note_of_start(run_dir, experiment)
    write_atomically(run_dir / run_directory.ENVIRONMENT, json.dumps(known, indent=2))


def when_compiled(programs: dict[tuple[int, ...], Future[Any]]) -> Callable[[], Callable[..., Any]]:
    """What is returned waits for all programs, and gives the function of state and batch that runs the right one."""

    def wait() -> Callable[..., Any]:
        compiled = {size: program.result() for size, program in programs.items()}
        return lambda state, batch: compiled[batch["inputs"].shape](state, batch)

    return wait


def _train(run: Prepared, display: Display, begun: float) -> dict[str, Any]:
    """The loop, from `run.start` to the last step. Returns the notes that the last checkpoint remembers.

    Notes: a fingerprint of the `text` and of `frozen` parameters, `losses` since the last line of metrics, `validation`
    at that step if there was one and `before` the first one, `step_seconds` spent in steps and `seconds` in all, over
    all processes.
    """

    from zerotollm.decoding.text import sample_text
    from zerotollm.training.checkpoints import AHEAD, CheckpointWriter, of_step
    from zerotollm.training.metrics import MetricsWriter, NotWritten, StepLog
    from zerotollm.training.prefetch import DeferredMetrics, prefetched

    feed, config, steps = run.feed, run.experiment.train, run.experiment.train.steps
    pace = Pace(feed.tokens_per_step, run.notes["step_seconds"])
    # In steps, until it was timed: the forward pass is a third of a step.
    eval_guess = feed.evaluation_tokens / pace.tokens_per_step / 3
    state, notes = run.state, run.notes

    with ExitStack() as stack:
        stop = [] if together() else stack.enter_context(stop_requests(hangup=True))
        path, tensorboard = run.run_dir / run_directory.METRICS, run.run_dir / run_directory.TENSORBOARD
        directory = run.run_dir / run_directory.CHECKPOINTS
        saved = of_step(directory, run.start).path / run_directory.METRICS
        writing = MetricsWriter(path, tensorboard, run.start, saved) if is_first() else NotWritten()
        metrics = stack.enter_context(closing(writing))
        keep = max(config.keep, config.average)
        regular = partial(due, steps=steps, every=config.checkpoint_every)
        writer = stack.enter_context(closing(CheckpointWriter(directory, keep, regular)))
        part, parts = run.placement.part
        dataset = feed.training(seed=config.seed, process_index=part, process_count=parts)
        batches = stack.enter_context(
            closing(prefetched(dataset, run.start, steps, run.placement.place_part))
        )
        log = StepLog(
            metrics,
            steps=steps,
            every=config.log_every,
            tokens_per_step=pace.tokens_per_step,
            bpb_per_nat=feed.tokens / feed.num_bytes["train"] / math.log(2),
            losses=notes["losses"],
        )

        skipped = 0.0

        def read(step: int, values: dict[str, float]) -> None:
            nonlocal skipped
            pace.step_done()
            if values.get("skipped_steps", 0.0) > skipped:
                skipped = values["skipped_steps"]
                display.say(
                    f"step {step} overflowed and was skipped, {skipped:.0f} so far; "
                    f"the loss scale is now {values['loss_scale']:g}"
                )
            log.add(step, values, pace.tokens_per_second)
            pauses = {  # those due after this very step are still to come
                "validation": (times(step - 1, steps, config.eval_every), eval_guess),
                "sample": (times(step - 1, steps, config.sample_every), 2.0),
            }
            left = pace.seconds_left(steps - step, pauses)
            display.progress(step, values["loss"], pace.tokens_per_second, left)

        def validated(state: Any) -> dict[str, Any]:
            params = run.merge_params(state)
            new = measured(run.eval_step(), params, feed, run.placement)
            if feed.old:
                new["old_bpb"] = measured(run.eval_step(), params, feed.old, run.placement)["bpb"]
            return new

        behind = DeferredMetrics(read)
        train_step = run.train_step()
        before = notes["before"]
        if run.begun_with and not (run.start or feed.labels):
            before = validated(state)
            display.say(f"before the first step: {words(before, feed)}")
        display.begin(run.start)
        pace.begin()
        saved_at = run.start
        for step, batch in enumerate(batches, run.start + 1):
            state, values = train_step(state, batch)
            behind.add(step, values)
            stopping = step < steps and (stop_requested(step) if together() else bool(stop))
            best = False
            if due(step, steps, config.eval_every):
                behind.drain()
                with pace.pause("validation"):
                    validation = validated(state)
                best = on_first(partial(log.validation, step, validation))
                display.validation(step, words(validation, feed), best)
            else:
                validation = None
            if due(step, steps, config.sample_every) and not feed.labels:
                behind.drain()
                with pace.pause("sample"):
                    text = sample_text(
                        run.merge_params(state),
                        run.model,
                        feed.tokenizer,
                        run.experiment.sample,
                        translates=translates(run.experiment),
                    )
                if is_first():
                    write_atomically(run.run_dir / run_directory.SAMPLES / f"step-{step:06}.txt", text)
                display.sample(step, text)
            if regular(step) or best or stopping:
                behind.drain()
                with pace.pause("save"):
                    notes = {
                        "text": feed.fingerprint,
                        "frozen": run.notes["frozen"],
                        "before": before,
                        "losses": list(log.losses),
                        "validation": validation,
                        "step_seconds": pace.seconds,
                        "seconds": run.notes["seconds"] + time.monotonic() - begun,
                    }
                    metrics.sync()
                    writer.save(state.saved(), step, notes, path)
                    saved_at = step
            if step == saved_at + config.checkpoint_every // AHEAD:
                if writer.busy():  # a slow disk, or quick steps: no time of theirs
                    behind.drain()
                    with pace.pause("slow save"):
                        writer.wait()
                writer.wait()
            if stopping:
                number = stop[0] if stop else signal.SIGTERM
                name = signal.Signals(number).name
                raise StoppedError(
                    f"{name} after step {step} of {steps}: saved in {run.run_dir}; the same command goes on",
                    number,
                )
    return notes


def measured(eval_step: Callable[..., Any], params: Any, feed: Any, placement: Any) -> dict[str, Any]:
    """Loss over the validation split of a feed."""
    from zerotollm.evaluation.loss import evaluate_batches

    batches = map(placement.place_whole, feed.evaluation("validation"))
    num_bytes = feed.num_bytes["validation"]
    lost = {"lost": feed.lost["validation"]} if feed.lost.get("validation") else {}
    return evaluate_batches(eval_step, params, batches, num_bytes=num_bytes) | lost


def words(validation: dict[str, Any], feed: Any) -> str:
    """A validation as people read it."""
    if feed.labels:
        return f"loss {validation['loss']:.4f} nats per label, accuracy {validation['accuracy']:.4f}"
    old = f", {validation['old_bpb']:.4f} on {feed.old.corpus}" if feed.old else ""
    return f"loss {validation['loss']:.4f}, {validation['bpb']:.4f} bits per {feed.byte}{old}"


def times(step: int, steps: int, every: int) -> int:
    """How many times it will be due after `step`."""
    between = steps // every - step // every if every else 0
    return between + (step < steps and not (every and steps % every == 0))
