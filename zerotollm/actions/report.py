"""report: one HTML file with all that can be seen of a run. Needs no network to be read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerotollm import run_directory
from zerotollm.actions.config import ReportOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences
from zerotollm.fields import flatten
from zerotollm.host.atomic_files import write_atomically

if TYPE_CHECKING:
    from zerotollm.explain.render.page import Section
    from zerotollm.run import Run

NAME = "report.html"
LONGEST = 64
"""Tokens of the text that are looked at: a page must carry the attention of every head."""


def report(experiment: Experiment, run_dir: Path, options: ReportOptions) -> Path:
    """Measures the run as `explain --whole-run True` does and writes `report.html` in its directory; returns the path.

    Raises UsageError where there is no checkpoint, or a run of `options.beside` is none.
    """
    from zerotollm.console import Console
    from zerotollm.explain.render.page import Report, Section, render, tree
    from zerotollm.explain.render.page_answers import answer_sections
    from zerotollm.run import load
    from zerotollm.session.compilation_cache import cache_compiled_programs

    others = {str(path): _other(Path(path)) for path in options.beside.replace(",", " ").split()}
    cache_compiled_programs(experiment.data)
    run = replace(load(run_dir, options.checkpoint), experiment=experiment)
    console = Console()
    text = _short(run, options.text or experiment.sample.prompt or "In the beginning God created the heavens")
    console.print(f"measuring {run!r}", highlight=False, soft_wrap=True)
    explanation = run.explain(text)
    study, why = None, ""
    try:
        study = run.study(text)
    except UsageError as error:
        why = f"left out: {error}"
    summary = run_directory.read_summary(run_dir)
    page = Report(
        title=f"{run.path.name}: what it learned and how it works",
        lead=_lead(run),
        facts=_facts(run, summary),
        sections=(
            _training(run),
            *answer_sections(explanation, study, why),
            *_beside(run, summary, others),
            Section("parameters", "Parameters", "The parameters", (), (tree("params", run.params),)),
            _made(run, summary),
        ),
    )
    path = run_dir / NAME
    write_atomically(path, render(page))
    console.print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    return path


def _lead(run: "Run") -> str:
    model = run.model_config
    return (
        f"{run.num_parameters:,} parameters, {model.num_layers} layers, width {model.width}; text: "
        f"{run.experiment.data.corpus}; step {run.step:,}. Every sentence below is made from numbers "
        "that were measured on this very model; 95 % intervals stand in brackets."
    )


def _short(run: "Run", text: str) -> str:
    """The beginning of a text, as far as it is shown."""
    ids = run.tokenizer.encode(text)
    return text if len(ids) < LONGEST else run.tokenizer.decode(ids[: LONGEST - 1]).strip()


def _other(path: Path) -> tuple[Experiment, dict[str, Any] | None, list[dict[str, Any]]]:
    from zerotollm.training.metrics import read_metrics

    experiment = run_directory.read_experiment(path)
    return experiment, run_directory.read_summary(path), read_metrics(path / run_directory.METRICS)


def _facts(run: "Run", summary: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    from zerotollm.session.progress import clock

    facts = [(f"{run.num_parameters / 1e6:.2f} M", "parameters")]
    if run.validation_bpb is not None:
        byte = (summary or {}).get("byte", "byte")
        facts.append((f"{run.validation_bpb:.4f}", f"bits per {byte}, validation"))
    if summary:
        facts += [
            (f"{summary['validation_loss']:.3f}", "nats per token, validation"),
            (f"{summary['tokens'] / 1e6:.2f} M", "tokens trained on"),
            (clock(summary["seconds"]), "wall time"),
            (f"{summary['tokens_per_second']:,}", "tokens/s"),
        ]
    return (*facts, (f"{run.tokenizer.vocab_size:,}", "tokens in the vocabulary"))


def _training(run: "Run") -> "Section":
    from zerotollm.explain.figures.curves import curves
    from zerotollm.explain.render.page import Figure, Section, Texts

    lines = run.metrics()
    blocks, sentences = [], []
    if any("loss" in line for line in lines):
        blocks.append(Figure(curves(lines)))
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        held_out = [(line["step"], line["validation_bpb"]) for line in lines if "validation_bpb" in line]
        (first, before), (last, after) = losses[0], losses[-1]
        sentence = f"From step {first} to {last:,} the training loss went from {before:.3f} to {after:.3f} nats a token"
        if held_out:
            step, best = min(held_out, key=lambda point: point[1])
            when = "the last measurement" if step == held_out[-1][0] else "later ones are higher"
            sentence += (
                f"; on held-out text the lowest is after step {step:,}, {best:.4f} bits per byte ({when})"
            )
        sentences.append(sentence + ".")
    else:
        sentences.append("There are no curves: this model was not trained here, or has not begun.")
    texts = [
        (
            f"after step {int(path.stem[5:]):,}",
            (path.read_text(encoding="utf-8", errors="replace").strip(),),
            "",
        )
        for path in sorted((run.path / run_directory.SAMPLES).glob("step-*.txt"))
    ]
    if texts:
        blocks.append(Texts("What it wrote on the way", tuple(texts)))
    return Section("training", "Training", "How did training go?", tuple(sentences), tuple(blocks))


def _beside(
    run: "Run", summary: Mapping[str, Any] | None, others: Mapping[str, tuple[Experiment, Any, Sequence[Any]]]
) -> "tuple[Section, ...]":
    """The run and others: the curve, the numbers, and which fields differ."""
    from zerotollm.explain.figures.curves import beside
    from zerotollm.explain.render.page import Figure, Section, Table

    if not others:
        return ()
    names = [Path(path).name for path in (str(run.path), *others)]
    if len(set(names)) == len(names):
        others = {Path(path).name: other for path, other in others.items()}
    own = str(run.path) if len(set(names)) < len(names) else names[0]
    all_ = {own: (run.experiment, summary, run.metrics())} | others
    columns = {
        "parameters": "parameters",
        "tokens": "tokens",
        "validation_bpb": "bits per byte",
        "best_validation_bpb": "best",
        "tokens_per_second": "tokens/s",
        "seconds": "seconds",
    }
    rows, sentences = [], []
    for name, (_, numbers, _) in all_.items():
        cells = [_cell((numbers or {}).get(field)) for field in columns]
        rows.append((name, *cells))
        if numbers is None:
            sentences.append(f"{name} is not finished, or was not trained here: it has no final numbers.")
    mine = (summary or {}).get("validation_bpb")
    for name, (_, numbers, _) in others.items():
        theirs = (numbers or {}).get("validation_bpb")
        same = (summary or {}).get("byte") == (numbers or {}).get("byte")
        if mine is not None and theirs is not None and same:
            word = "fewer" if mine < theirs else "more"
            sentences.append(
                f"{own} needs {abs(mine - theirs):.4f} bits per byte {word} than {name}: one run of each, so no "
                "interval, and no difference is shown."
            )
    changed = [
        (name, field, str(theirs), str(own_value))
        for name, (experiment, _, _) in others.items()
        for field, own_value, theirs in differences(run.experiment, experiment)
    ]
    picture = beside({name: lines for name, (_, _, lines) in all_.items()})
    blocks = [Figure(picture)] if picture.panels else []
    blocks.append(Table(("run", *columns.values()), tuple(rows), "Final numbers"))
    if changed:
        blocks.append(Table(("run", "field", "there", "here"), tuple(changed), "What differs"))
    return (
        Section(
            "beside", "Other runs", "How does it compare with other runs?", tuple(sentences), tuple(blocks)
        ),
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if value > 100 else f"{value:.4f}"


def _made(run: "Run", summary: Mapping[str, Any] | None) -> "Section":
    """Configuration, environment and cost."""
    import json

    from zerotollm.explain.render.page import Section, Table
    from zerotollm.model.accelerator import this_accelerator
    from zerotollm.planning.speed import flops_per_token
    from zerotollm.session import summary as final
    from zerotollm.session.job import job_for

    blocks, sentences = [], []
    if summary:
        # Of every token that was read, though a part of them be learned, or a label alone.
        job = job_for(replace(run.experiment, model=run.model_config), this_accelerator())
        flops = flops_per_token(job) * summary["steps"] * job.batch_size * job.context
        speed = flops / summary["step_seconds"]
        sentences.append(
            f"It took {summary['seconds']:,.0f} seconds and {flops:.3g} floating-point operations in matrix products, "
            f"{speed / 1e9:,.0f} GFLOP/s while it trained."
        )
        rows = tuple(final.rows(summary).items())
        blocks.append(Table(("what", "value"), rows, "Cost and result"))
    else:
        sentences.append("There are no final numbers: this model was not trained here, or is not finished.")
    plain = {name: value for name, value, _ in differences(run.experiment, Experiment())}
    fields = flatten(run.experiment).items()
    rows = tuple((name, str(value), "changed" if name in plain else "") for name, value in fields)
    blocks.append(Table(("field", "value", "against the defaults"), rows, "Configuration", folded=True))
    known = run_directory.read_environment(run.path)
    if known:
        rows = tuple((name, json.dumps(value, ensure_ascii=False)) for name, value in known.items())
        blocks.append(Table(("what", "value"), rows, "Environment", folded=True))
    return Section(
        "made", "Made with", "With what was it made, and what did it cost?", tuple(sentences), tuple(blocks)
    )
