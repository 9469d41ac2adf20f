"""report: write one HTML file with everything that can be seen of a run; reading it needs no network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from zerotollm import run_directory
from zerotollm.actions.config import ReportOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences
from zerotollm.explain.figures.curves import compare_runs, training_curves
from zerotollm.explain.render.page import Block, Figure, Program, Report, Section, Texts, render, tree
from zerotollm.explain.render.page_answers import answer_sections
from zerotollm.explain.render.questions import UNITS
from zerotollm.explain.render.tables import Table
from zerotollm.explainable_run import load
from zerotollm.fields import flatten
from zerotollm.host.atomic_files import write_atomically
from zerotollm.model.accelerator import this_accelerator
from zerotollm.planning.speed import flops_per_token
from zerotollm.run import Run
from zerotollm.session import summary as summaries
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.job import job_for
from zerotollm.session.model_page import embedded_page
from zerotollm.session.progress import clock
from zerotollm.training.metrics import read_metrics
from zerotollm.types import Json

NAME = "report.html"
LONGEST = 64
"""Tokens of the explained text: the page carries the attention of every head."""
DEFAULT_TEXT = "In the beginning God created the heavens"
NUMBERS = {
    "parameters": "parameters",
    "tokens": "tokens",
    "validation_bpb": "bits per byte",
    "best_validation_bpb": "best",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
}
"""Fields of a summary that runs are compared by, and the names of their columns."""


class Trained(NamedTuple):
    """A run as its directory records it."""

    experiment: Experiment
    summary: Json
    """empty while the run is not finished, or if it was not trained here"""
    metrics: Sequence[Json]


def report(experiment: Experiment, run_dir: Path, options: ReportOptions) -> Path:
    """Measure the run as `explain --whole-run True` does, and write `report.html` in its directory; return the path.

    Raises UsageError if there is no checkpoint, or if a path of `options.beside` is not a run directory.
    """
    others = {str(path): _read(Path(path)) for path in options.beside.replace(",", " ").split()}
    cache_compiled_programs(experiment.data)
    run = replace(load(run_dir, options.checkpoint), experiment=experiment)
    console = Console()
    summary = run_directory.read_summary(run_dir) or {}
    text = options.text or experiment.sample.prompt or summary.get("example", DEFAULT_TEXT)
    text = _cut(run, text)
    console.print(f"measuring {run!r}", highlight=False, soft_wrap=True)
    explanation = run.explain(text)
    run_explanation, why = None, ""
    try:
        run_explanation = run.study(text, judge=options.judge)
    except UsageError as error:
        why = f"left out: {error}"
    trained = Trained(experiment, summary, run.metrics())
    layers, width, corpus = run.model_config.num_layers, run.model_config.width, experiment.data.corpus
    page = Report(
        title=f"{run.path.name}: what it learned and how it works",
        lead=f"{run.num_parameters:,} parameters, {layers} layers, width {width}; text: {corpus}; step {run.step:,}. "
        "All numbers below were measured on this model; brackets are 95 % intervals. "
        f"{UNITS}",
        facts=_facts(run, trained.summary),
        sections=(
            *_try_it(run),
            _training(run, trained.metrics),
            *answer_sections(explanation, run_explanation, why),
            *_other_runs(run.path, trained, others),
            Section("parameters", "Parameters", "The parameters", (), (tree("params", run.params),)),
            _made(run, trained.summary),
        ),
    )
    path = run_dir / NAME
    write_atomically(path, render(page))
    console.print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    return path


def _read(path: Path) -> Trained:
    metrics = read_metrics(path / run_directory.METRICS)
    return Trained(run_directory.read_experiment(path), run_directory.read_summary(path) or {}, metrics)


def _cut(run: Run, text: str) -> str:
    """Return the start of a text, `LONGEST` tokens with the one that starts a document."""
    ids = run.tokenizer.encode(text)
    return text if len(ids) < LONGEST else run.tokenizer.decode(ids[: LONGEST - 1]).strip()


def _facts(run: Run, summary: Json) -> tuple[tuple[str, str], ...]:
    facts = [(f"{run.num_parameters / 1e6:.2f} M", "parameters")]
    if run.validation_bpb is not None:
        facts.append((f"{run.validation_bpb:.4f}", f"bits per {summary.get('byte', 'byte')}, validation"))
    if summary:
        facts += [
            (f"{summary['validation_loss']:.3f}", "nats per token, validation"),
            (f"{summary['tokens'] / 1e6:.2f} M", "tokens trained on"),
            (clock(summary["seconds"]), "wall time"),
            (f"{summary['tokens_per_second']:,}", "tokens/s"),
        ]
    return (*facts, (f"{run.tokenizer.vocab_size:,}", "tokens in the vocabulary"))


def _try_it(run: Run) -> tuple[Section, ...]:
    """Return a section in which the model runs; none where it is too large for this page."""
    html = embedded_page(run)
    if html is None:
        return ()
    sentence = (
        "This is the model itself, with its weights in 8 bits. Let it write, choose a token to see what else could "
        "stand there, or take out a head."
    )
    block = Program("The model, running in this page", html)
    return (Section("try", "Try it", "Try it here", (sentence,), (block,)),)


def _training(run: Run, metrics: Sequence[Json]) -> Section:
    blocks: list[Block] = []
    losses = [(line["step"], line["loss"]) for line in metrics if "loss" in line]
    if losses:
        blocks.append(Figure(training_curves(metrics)))
        (first, before), (last, after) = losses[0], losses[-1]
        sentence = f"The training loss is {before:.3f} nats per token at step {first} and {after:.3f} at step {last:,}"
        validation = [(line["step"], line["validation_bpb"]) for line in metrics if "validation_bpb" in line]
        if validation:
            step, best = min(validation, key=lambda point: point[1])
            when = "the last measurement" if step == validation[-1][0] else "later ones are higher"
            lowest = f"{best:.4f} bits per byte, after step {step:,} ({when})"
            sentence += f"; the lowest validation loss is {lowest}"
    else:
        sentence = "There are no curves: this model was not trained here, or training has not started"
    texts = []
    for path in sorted((run.path / run_directory.SAMPLES).glob("step-*.txt")):
        sample = path.read_text(encoding="utf-8", errors="replace").strip()
        texts.append((f"after step {int(path.stem.removeprefix('step-')):,}", (sample,), ""))
    if texts:
        blocks.append(Texts("Samples during training", tuple(texts)))
    return Section("training", "Training", "How did training go?", (f"{sentence}.",), tuple(blocks))


def _other_runs(path: Path, trained: Trained, others: Mapping[str, Trained]) -> tuple[Section, ...]:
    """Return a section that compares the run with others: curves, final numbers, and fields that differ."""
    if not others:
        return ()
    name = str(path)
    short = [Path(path).name for path in (name, *others)]
    if len(set(short)) == len(short):
        name, others = short[0], dict(zip(short[1:], others.values(), strict=True))
    runs = {name: trained, **others}
    rows = [(run, *(_cell(runs[run].summary.get(field)) for field in NUMBERS)) for run in runs]
    sentences = [
        f"{run} is not finished, or was not trained here: it has no final numbers."
        for run in runs
        if not runs[run].summary
    ]
    bpb = trained.summary.get("validation_bpb")
    for other, (_, summary, _) in others.items():
        other_bpb = summary.get("validation_bpb")
        same_unit = summary.get("byte") == trained.summary.get("byte")
        if bpb is not None and other_bpb is not None and same_unit:
            word = "fewer" if bpb < other_bpb else "more"
            sentences.append(
                f"{name} needs {abs(bpb - other_bpb):.4f} bits per byte {word} than {other}: with one run of each "
                "there is no interval, and no difference is shown."
            )
    changed = [
        (run, field, str(value), str(own_value))
        for run, other in others.items()
        for field, own_value, value in differences(trained.experiment, other.experiment)
    ]
    picture = compare_runs({run: runs[run].metrics for run in runs})
    blocks: list[Block] = [Figure(picture)] if picture.panels else []
    blocks.append(Table(("run", *(f">{column}" for column in NUMBERS.values())), rows, "Final numbers"))
    if changed:
        blocks.append(Table(("run", "field", "there", "here"), changed, "Fields that differ"))
    title = "How does it compare with other runs?"
    return (Section("other-runs", "Other runs", title, tuple(sentences), tuple(blocks)),)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if value > 100 else f"{value:.4f}"


def _made(run: Run, summary: Json) -> Section:
    """Return a section of cost, configuration and environment."""
    blocks: list[Block] = []
    sentence = "There are no final numbers: this model was not trained here, or is not finished."
    if summary:
        # All tokens count that the model reads, also those without a loss.
        job = job_for(run.trained, this_accelerator())
        flops = flops_per_token(job) * summary["steps"] * job.batch_size * job.context
        speed = flops / summary["step_seconds"]
        sentence = (
            f"It took {summary['seconds']:,.0f} seconds and {flops:.3g} floating-point operations in matrix products, "
            f"{speed / 1e9:,.0f} GFLOP/s during training steps."
        )
        rows = list(summaries.rows(dict(summary)).items())
        blocks.append(Table(("name", "value"), rows, "Cost and result"))
    changed = {name for name, _, _ in differences(run.experiment, Experiment())}
    fields = [
        (name, str(value), "changed" if name in changed else "")
        for name, value in flatten(run.experiment).items()
    ]
    blocks.append(Table(("field", "value", "against the defaults"), fields, "Configuration", folded=True))
    if environment := run_directory.read_environment(run.path):
        rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in environment.items()]
        blocks.append(Table(("name", "value"), rows, "Environment", folded=True))
    title = "With what was it made, and what did it cost?"
    return Section("made", "Made with", title, (sentence,), tuple(blocks))
