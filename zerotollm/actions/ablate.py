"""ablate: train the variants of a suite beside its base, seed by seed, and say which differences are shown."""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from zerotollm import run_directory
from zerotollm.actions.config import AblateOptions
from zerotollm.actions.tabulate import WIDTH, write_results
from zerotollm.console import Console
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.allocator import reuse_memory
from zerotollm.model.config import resolve
from zerotollm.planning.flops import num_parameters, train_flops
from zerotollm.session.progress import clock
from zerotollm.session.warm_start import Beginning, beginning_of
from zerotollm.studies.records import (
    RATES,
    Outcome,
    Sources,
    check_folder,
    finished,
    read_runs,
    reads,
    run_experiment,
    write_run,
)
from zerotollm.studies.suite import BASE, Suite, Variant
from zerotollm.studies.table import FUTURE, Row, best_rate, make_rows, terminal_table


def ablate(suite: Suite, run_dir: Path, options: AblateOptions) -> list[Row]:
    """Trains what is not finished yet in RUN_DIR/BUDGET, and writes the tables and figures there.

    Every seed trains the base and each variant on the same data in the same order. Killed at any moment and
    started again, runs that were finished are kept and the others done. A run whose loss is no longer finite is a
    result too; a variant that sees later tokens is not trained. Returns the rows of the table. Raises UsageError
    where the folder holds other runs, RunError where another process writes there or the disk is full.
    """
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}, and must be at least 1")
    folder = run_dir / options.budget
    shape, model = suite.base.data, suite.base.model
    reuse_memory(shape.batch_size * shape.context * model.width)
    check_folder(folder)
    variants = [suite.about or Variant(BASE, BASE, suite.base, "", ""), *suite.variants]
    seeds = list(range(suite.base.train.seed, suite.base.train.seed + options.seeds))
    with run_directory.locked(folder):
        left = [
            _cost(v) * sum(len(job.missing) for job in planned(folder, v, seeds, options)) for v in variants
        ]
        console = Console()
        console = console if console.is_terminal else Console(width=WIDTH, soft_wrap=True)
        sources: dict[Hashable, Sources] = {}
        if sum(left) or any("text" in record for record in read_runs(folder)):
            sources = prepare_all(variants)
            read_runs(folder, sources)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]} left"),
        )
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            work = _Work(folder, suite.base, options, _environment(), sources, bar, Pace(sum(left)))
            for variant, cost in zip(variants, left, strict=True):
                trained = [work.do(job) for job in jobs(folder, variant, seeds, options)]
                work.pace.skip_to(cost)
                if any(trained):
                    bar.console.print(terminal_table(make_rows(read_runs(folder))))
        return write_results(folder, console)


# --- what is to be done


@dataclass(frozen=True)
class Job:
    """Runs of one compiled program."""

    variant: Variant
    rate: float
    missing: tuple[int, ...]
    """seeds without a finished run"""


def jobs(folder: Path, variant: Variant, seeds: Sequence[int], options: AblateOptions) -> Iterator[Job]:
    """The jobs of a variant, each made when the one before is done: which rate is best is only then known."""

    def job(rate: float, seeds: Sequence[int]) -> Job:
        return Job(
            variant, rate, tuple(seed for seed in seeds if finished(folder, variant, seed, rate) is None)
        )

    yield job(1.0, seeds)
    if options.tune:
        for rate in RATES:
            yield job(rate, seeds[:1])
        tried = [run for rate in RATES if (run := finished(folder, variant, seeds[0], rate))]
        best = best_rate(tried) if len(tried) == len(RATES) else None
        if best is not None:
            yield job(best, seeds)


def planned(folder: Path, variant: Variant, seeds: Sequence[int], options: AblateOptions) -> list[Job]:
    """What may be left to do at most, before any of it is done. Raises UsageError for runs of other experiments."""
    found = list(jobs(folder, variant, seeds, options))
    if options.tune and len(found) == 1 + len(RATES):  # no rate is known to be best: another may be
        found.append(Job(variant, RATES[0], tuple(seeds[1:])))
    return [job for job in found if not (job.rate == 1 and job is not found[0])]


def prepare_all(variants: Sequence[Variant]) -> dict[Hashable, Sources]:
    """Makes every tokenizer and all tokens, so that what a text does not allow is said before hours of work.

    Returns fingerprints of what each variant reads, by `reads`.
    """
    from zerotollm.run import cache_compiled_programs
    from zerotollm.session.data import feed_of

    cache_compiled_programs(variants[0].experiment.data)
    sources: dict[Hashable, Sources] = {}
    for variant in variants:
        key = reads(variant.experiment)
        if key not in sources:
            try:
                feed = feed_of(variant.experiment)
                sources[key] = sources_of(feed, beginning_of(variant.experiment, feed))
            except UsageError as error:
                if variant.name == BASE:
                    raise
                raise UsageError(
                    f"the variant {variant.name}: {error}; or choose others with --only"
                ) from None
    return sources


def sources_of(feed: Any, beginning: Beginning) -> Sources:
    """Fingerprints of a `zerotollm.data.feed.Feed`, the size of its validation text included, and of the run that
    training begins with."""
    from zerotollm.training.parameter_transfer import fingerprint

    validation = [feed.evaluation_tokens, feed.num_bytes["validation"]]
    return {
        "text": [*feed.fingerprint, *validation],
        "start": fingerprint(beginning.run and beginning.run.params),
    }


# --- doing it


class Pace:
    """Time left of a suite: what was measured for each floating-point operation, times those left."""

    def __init__(self, left: float):
        self.left = left
        self._done, self._seconds = 0.0, 0.0
        self._of_variant = 0.0

    def add(self, cost: float, seconds: float) -> None:
        """Work of so many operations took so long."""
        self._done += cost
        self._seconds += seconds
        self._of_variant += cost

    def skip_to(self, planned: float) -> None:
        """A variant for which so much was planned is done, whatever it took."""
        self.left -= planned
        self._of_variant = 0.0

    def seconds_left(self) -> float:
        """Not a number before anything was measured."""
        if not self._done:
            return float("nan")
        return max(0.0, self.left - self._of_variant) * self._seconds / self._done


@dataclass(frozen=True)
class _Work:
    """What every job needs."""

    folder: Path
    base: Experiment
    options: AblateOptions
    environment: dict[str, Any]
    sources: dict[Hashable, Sources]
    """as they were before the first run"""
    bar: Progress
    pace: Pace

    def do(self, job: Job) -> bool:
        """Trains what is missing and writes it. Says whether there was anything to do."""
        if not job.missing:
            return False
        from zerotollm.evaluation.causality import sees_the_future
        from zerotollm.model.accelerator import this_accelerator
        from zerotollm.planning.speed import flops_per_token
        from zerotollm.session.data import feed_of
        from zerotollm.session.job import job_for
        from zerotollm.session.train_in_memory import compile_programs

        begun = time.monotonic()
        experiment = run_experiment(job.variant, job.missing[0], job.rate)
        shape = experiment.data
        feed = feed_of(experiment)
        beginning = beginning_of(experiment, feed)
        model, sources = beginning.model, sources_of(feed, beginning)
        if sources != self.sources[reads(experiment)]:
            raise RunError(
                f"{job.variant.name}: the text of {shape.corpus}, or train.start_from, has changed since the suite "
                "began: bring it back, or choose another --run-dir"
            )
        planned = job_for(replace(experiment, model=model), this_accelerator())
        size = {"parameters": num_parameters(model), "flops_per_token": flops_per_token(planned)} | sources
        if sees_the_future(model, masked=shape.document_mask):
            for seed in job.missing:
                self._write(job, seed, "sees the future", size | _measured(None, 0.0))
            self.bar.console.print(f"{job.variant.name}: {FUTURE}; not trained", style="bold red")
            return True
        together = self.options.together and len(job.missing) > 1
        programs = compile_programs(experiment, num_vmapped_seeds=len(job.missing) if together else 0)
        self.pace.add(0.0, time.monotonic() - begun)
        for seeds in [job.missing] if together else [(seed,) for seed in job.missing]:
            self._train(job, programs, seeds, size)
        return True

    def _train(self, job: Job, programs: Any, seeds: tuple[int, ...], size: dict[str, int]) -> None:
        from zerotollm.evaluation.translation_report import not_read, translates, validation_scores
        from zerotollm.session.train_in_memory import DivergedError, compile_programs, fit

        begun, fitted = time.monotonic(), []
        with _running(self.bar, job, seeds, programs.experiment.train.steps, self.pace) as progress:
            try:
                fitted = fit(programs, seeds, progress)
            except DivergedError:
                if len(seeds) > 1:  # which one it was shows one at a time
                    single = compile_programs(programs.experiment)
                    for seed in seeds:
                        self._train(job, single, (seed,), size)
                    return
        seconds = time.monotonic() - begun
        self.pace.add(_cost(job.variant) * len(seeds), seconds)
        for lane, seed in enumerate(seeds):
            run = fitted[lane] if fitted else None
            numbers = size | _measured(run, seconds)
            result = found(run.validation) if run else "diverged"
            if run and translates(programs.experiment):
                scores = validation_scores(programs, run.params)
                numbers["validation_bleu"] = scores["bleu"]
                result += f", BLEU {scores['bleu']:.2f}"
                result += "".join(f", not read: {tokens}" for _, tokens in not_read(scores))
            self._write(job, seed, "trained" if run else "diverged", numbers)
            unit = "labels" if run and "accuracy" in run.validation else "tokens"
            speed = f", {run.tokens_per_second:,.0f} {unit}/s" if run else ""
            self.bar.console.print(
                f"{_title(job, (seed,))}: {result}, {clock(seconds)}{speed}; "
                f"{clock(self.pace.seconds_left())} left of the suite",
                highlight=False,
            )

    def _write(self, job: Job, seed: int, outcome: Outcome, numbers: dict[str, Any]) -> None:
        numbers = numbers | {"environment": self.environment}
        write_run(self.folder, self.base, job.variant, seed, job.rate, outcome, numbers)


def _measured(run: Any, seconds: float) -> dict[str, Any]:
    """The numbers of a fitted run, None where there is none. `seconds`: training and validation."""
    last = run.losses[-max(1, round(len(run.losses) / 20)) :] if run else []
    return {
        "validation_loss": run.validation["loss"] if run else None,
        "validation_bpb": run.validation["bpb"] if run else None,
        "train_loss": sum(last) / len(last) if run else None,
        "validation_accuracy": run.validation.get("accuracy") if run else None,
        "tokens_per_second": run.tokens_per_second if run else None,
        "trained_parameters": run.trained_parameters if run else None,
        "step_bytes": run.step_bytes if run else None,
        "seconds": seconds,
    }


def found(validation: dict[str, Any]) -> str:
    """A validation in few words."""
    if "accuracy" in validation:
        return f"accuracy {validation['accuracy']:.4f}, {validation['bpb']:.4f} bits per label"
    return f"{validation['bpb']:.4f} bits per byte"


def _cost(variant: Variant) -> float:
    """Floating-point operations of one run, roughly."""
    experiment = variant.experiment
    shape = experiment.data
    model = resolve(experiment.model, vocab_size=experiment.tokenizer.vocab_size, context=shape.context)
    return train_flops(model, shape.context) * shape.context * shape.batch_size * experiment.train.steps


def _title(job: Job, seeds: tuple[int, ...]) -> str:
    rate = "" if job.rate == 1 else f", rates x {job.rate:g}"
    return f"{job.variant.name}{rate}, seed {' and '.join(map(str, seeds))}"


@contextmanager
def _running(
    bar: Progress, job: Job, seeds: tuple[int, ...], steps: int, pace: Pace
) -> Iterator[Callable[[int], None]]:
    """A bar for the run, gone when it is done; gives what is to be called after every step."""
    task = bar.add_task(_title(job, seeds), total=steps, left=clock(pace.seconds_left()))
    begun, left = time.monotonic(), pace.seconds_left()

    def progress(step: int) -> None:
        bar.update(task, completed=step, left=clock(max(0.0, left - (time.monotonic() - begun))))

    try:
        yield progress
    finally:
        bar.remove_task(task)


def _environment() -> dict[str, Any]:
    """What a number depends on besides the experiment, without what only says whose machine it was."""
    environment = run_directory.environment()
    flags = [flag for flag in environment["xla_flags"].split() if "/" not in flag]
    kept = ("python", "cpu_count", "devices", "processes", "git_commit", "versions")
    return {name: environment[name] for name in kept} | {"xla_flags": " ".join(flags)}
