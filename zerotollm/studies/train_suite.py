"""Train the missing runs of a suite: the base and each variant with the same seeds, in memory."""

import math
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from rich.progress import BarColumn, Progress, TextColumn

from zerotollm import run_directory
from zerotollm.components import dataset_of, model_of
from zerotollm.console import Console
from zerotollm.data.feed import Feed
from zerotollm.errors import DivergedError, RunError, UsageError
from zerotollm.evaluation.causality import sees_the_future
from zerotollm.evaluation.translation_report import not_read, translate_split
from zerotollm.experiment import Experiment, translates
from zerotollm.model.accelerator import this_accelerator
from zerotollm.model.build import init_params
from zerotollm.planning.flops import flops_per_step
from zerotollm.planning.speed import flops_per_token
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.job import job_for
from zerotollm.session.progress import clock
from zerotollm.session.train_in_memory import Fitted, Programs, compile_programs, fit
from zerotollm.session.warm_start import WarmStart, warm_start
from zerotollm.studies.records import (
    RATES,
    Measurements,
    Outcome,
    Size,
    Sources,
    finished,
    read_runs,
    run_experiment,
    source_fields,
    write_run,
)
from zerotollm.studies.results import rows_of
from zerotollm.studies.suite import BASE, Suite, Variant
from zerotollm.studies.table import FUTURE, best_rate, terminal_table
from zerotollm.training.parameter_transfer import fingerprint
from zerotollm.types import Json


def train_missing(
    folder: Path, suite: Suite, seeds: Sequence[int], console: Console, *, tune: bool, together: bool
) -> None:
    """Train the runs that have no record in `folder`, variant by variant, and show the table after each variant.

    `tune` also tries the learning rates times RATES with the first seed, and the best with all. `together` trains all
    seeds of a variant as one program. Raises UsageError and RunError as `ablate` does.
    """
    variants = [suite.base_variant or Variant(BASE, BASE, suite.base, "", ""), *suite.variants]
    costs = [run_flops(v) * sum(len(job.seeds) for job in planned(folder, v, seeds, tune)) for v in variants]
    sources: dict[Hashable, Sources] = {}
    if sum(costs) or any("text" in record for record in read_runs(folder)):
        sources = prepare_data(variants)
        read_runs(folder, sources)
    name, left = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[left]} left")
    with Progress(
        name, BarColumn(), left, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        remaining = RemainingTime(sum(costs))
        training = _Training(
            folder, suite.base, together, sources, progress, remaining, environment_of_numbers()
        )
        for variant, cost in zip(variants, costs, strict=True):
            trained = [training.run(job) for job in jobs(folder, variant, seeds, tune)]
            remaining.finish_variant(cost)
            if any(trained):
                console.print(terminal_table(rows_of(folder)))


@dataclass(frozen=True)
class Job:
    """The missing runs of a variant at one rate: they share a compiled program."""

    variant: Variant
    rate: float
    seeds: tuple[int, ...]

    def title(self, seeds: Sequence[int]) -> str:
        rate = "" if self.rate == 1 else f", rates x {self.rate:g}"
        return f"{self.variant.name}{rate}, seed {' and '.join(map(str, seeds))}"


def jobs(folder: Path, variant: Variant, seeds: Sequence[int], tune: bool) -> Iterator[Job]:
    """Yield the jobs of a variant. The last depends on the records of those before: it takes the best rate."""

    def job(rate: float, seeds: Sequence[int]) -> Job:
        missing = (seed for seed in seeds if finished(folder, variant, seed, rate) is None)
        return Job(variant, rate, tuple(missing))

    yield job(1.0, seeds)
    if tune:
        for rate in RATES:
            yield job(rate, seeds[:1])
        tried = [run for rate in RATES if (run := finished(folder, variant, seeds[0], rate))]
        best = best_rate(tried) if len(tried) == len(RATES) else None
        if best is not None:
            yield job(best, seeds)


def planned(folder: Path, variant: Variant, seeds: Sequence[int], tune: bool) -> list[Job]:
    """Return the jobs of a variant that may be left at most. Raises UsageError for runs of other experiments."""
    first, *others = jobs(folder, variant, seeds, tune)
    if len(others) == len(RATES):  # the best rate is not known yet
        others.append(Job(variant, RATES[0], tuple(seeds[1:])))
    return [first, *(job for job in others if job.rate != 1)]


def run_flops(variant: Variant) -> float:
    """Return about the floating-point operations of one run."""
    return flops_per_step(variant.experiment) * variant.experiment.train.steps


def prepare_data(variants: Sequence[Variant]) -> dict[Hashable, Sources]:
    """Prepare all tokenizers and tokens, so that errors appear before hours of training; return their fingerprints.

    The keys are `source_fields`.
    """
    cache_compiled_programs(variants[0].experiment.data)
    sources: dict[Hashable, Sources] = {}
    for variant in variants:
        key = source_fields(variant.experiment)
        if key in sources:
            continue
        try:
            feed = dataset_of(variant.experiment)
            sources[key] = _sources(feed, warm_start(variant.experiment, feed))
        except UsageError as error:
            if variant.name == BASE:
                raise
            raise UsageError(f"the variant {variant.name}: {error}; or choose others with --only") from None
    return sources


def _sources(feed: Feed, start: WarmStart) -> Sources:
    validation = [feed.evaluation_tokens, feed.num_bytes["validation"]]
    initial = fingerprint(start.run.params) if start.run else None
    return {"text": [*feed.fingerprint, *validation], "start": initial}


@dataclass
class RemainingTime:
    """Time left of a suite: floating-point operations left, at the speed measured so far."""

    planned: float
    done: float = 0.0
    seconds: float = 0.0
    done_of_variant: float = 0.0

    def add(self, flops: float, seconds: float) -> None:
        """Count finished work."""
        self.done += flops
        self.seconds += seconds
        self.done_of_variant += flops

    def finish_variant(self, planned: float) -> None:
        """Take the operations planned for a variant from the rest, whatever was done of them."""
        self.planned -= planned
        self.done_of_variant = 0.0

    def seconds_left(self) -> float:
        """Return NaN before anything was measured."""
        if not self.done:
            return float("nan")
        return max(0.0, self.planned - self.done_of_variant) * self.seconds / self.done


@dataclass(frozen=True)
class _Training:
    """What the jobs of a suite share."""

    folder: Path
    base: Experiment
    together: bool
    sources: dict[Hashable, Sources]
    """before the first run"""
    progress: Progress
    remaining: RemainingTime
    environment: Json

    def run(self, job: Job) -> bool:
        """Train the missing runs of a job and write their records. Return whether there were any."""
        if not job.seeds:
            return False
        began = time.monotonic()
        experiment = run_experiment(job.variant, job.seeds[0], job.rate)
        data, name = experiment.data, job.variant.name
        feed = dataset_of(experiment)
        start = warm_start(experiment, feed)
        model, sources = start.experiment.model, _sources(feed, start)
        if sources != self.sources[source_fields(experiment)]:
            raise RunError(
                f"{name}: the text of {data.corpus}, or train.start_from, has changed since the suite began: "
                "bring it back, or choose another --run-dir"
            )
        flops = flops_per_token(job_for(replace(experiment, model=model), this_accelerator()))
        net = model_of(start.experiment)  # an own one may have more parameters than its configuration says
        leaves = jax.tree.leaves(jax.eval_shape(lambda: init_params(net, 0)))
        parameters = sum(math.prod(leaf.shape) for leaf in leaves)
        size: Size = {"parameters": parameters, "flops_per_token": flops, **sources}
        if sees_the_future(net, masked=data.document_mask):
            for seed in job.seeds:
                self._write(job, seed, "sees the future", _measurements(size, None))
            self.progress.console.print(f"{name}: {FUTURE}; not trained", style="bold red")
            return True
        together = self.together and len(job.seeds) > 1
        programs = compile_programs(experiment, num_vmapped_seeds=len(job.seeds) if together else 0)
        self.remaining.add(0.0, time.monotonic() - began)
        for seeds in [job.seeds] if together else [(seed,) for seed in job.seeds]:
            self._train(job, programs, seeds, size)
        return True

    def _train(self, job: Job, programs: Programs, seeds: tuple[int, ...], size: Size) -> None:
        began, cpu_began = time.monotonic(), time.process_time()
        suite_left = self.remaining.seconds_left()
        steps = programs.experiment.train.steps
        task = self.progress.add_task(job.title(seeds), total=steps, left=clock(suite_left))

        def show(step: int) -> None:
            seconds_left = max(suite_left - (time.monotonic() - began), 0.0)
            self.progress.update(task, completed=step, left=clock(seconds_left))

        try:
            results: Sequence[Fitted | None] = fit(programs, seeds, show)
        except DivergedError:
            if len(seeds) > 1:  # one at a time, to learn which of them
                single = compile_programs(programs.experiment)
                for seed in seeds:
                    self._train(job, single, (seed,), size)
                return
            results = [None]
        finally:
            self.progress.remove_task(task)
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
        self.remaining.add(run_flops(job.variant) * len(seeds), seconds)
        for seed, result in zip(seeds, results, strict=True):
            numbers = _measurements(size, result, seconds, cpu_seconds / len(seeds))
            outcome, speed = "diverged", ""
            words: str = outcome
            if result:
                outcome, words = "trained", describe_validation(result.validation)
                unit = "labels" if "accuracy" in result.validation else "tokens"
                speed = f", {result.tokens_per_second:,.0f} {unit}/s"
                if translates(programs.experiment):
                    asked, tokenizer = programs.experiment, programs.feed.tokenizer
                    scores, _ = translate_split(
                        asked, result.params, model_of(asked), tokenizer, "validation"
                    )
                    numbers["validation_bleu"] = scores["bleu"]
                    words += f", BLEU {scores['bleu']:.2f}"
                    words += "".join(f", not read: {tokens}" for _, tokens in not_read(scores))
            self._write(job, seed, outcome, numbers)
            left = f"{clock(self.remaining.seconds_left())} left of the suite"
            self.progress.console.print(f"{job.title([seed])}: {words}, {clock(seconds)}{speed}; {left}")

    def _write(self, job: Job, seed: int, outcome: Outcome, numbers: Measurements) -> None:
        numbers["environment"] = self.environment
        write_run(self.folder, self.base, job.variant, seed, job.rate, outcome, numbers)


def _measurements(
    size: Size, run: Fitted | None, seconds: float = 0.0, cpu_seconds: float = 0.0
) -> Measurements:
    validation: dict[str, float] = run.validation if run else {}
    last = run.losses[-max(1, round(len(run.losses) / 20)) :] if run else []
    return {
        **size,
        "validation_loss": validation.get("loss"),
        "validation_bpb": validation.get("bpb"),
        "train_loss": sum(last) / len(last) if run else None,
        "validation_accuracy": validation.get("accuracy"),
        "tokens_per_second": run.tokens_per_second if run else None,
        "trained_parameters": run.trained_parameters if run else None,
        "step_bytes": run.step_bytes if run else None,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def describe_validation(validation: dict[str, float]) -> str:
    """Return a validation in a few words."""
    if "accuracy" in validation:
        return f"accuracy {validation['accuracy']:.4f}, {validation['bpb']:.4f} bits per label"
    return f"{validation['bpb']:.4f} bits per byte"


def environment_of_numbers() -> Json:
    """Return what a number depends on besides the experiment, without names and paths of the machine."""
    environment = run_directory.environment()
    flags = [flag for flag in environment["xla_flags"].split() if "/" not in flag]
    names = ("python", "cpu_count", "devices", "processes", "git_commit", "versions")
    return {name: environment[name] for name in names} | {"xla_flags": " ".join(flags)}
