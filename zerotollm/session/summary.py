"""The end of a run: summary.json, the table that people see, and the commands worth trying next."""

import resource
import sys
from pathlib import Path
from typing import Any

from zerotollm import run_directory
from zerotollm.experiment import Experiment
from zerotollm.session.progress import clock
from zerotollm.shell import launch, quoted
from zerotollm.training import checkpoints
from zerotollm.training.metrics import MEASURED, read_metrics


def summarize(
    run_dir: Path, notes: dict[str, Any], num_parameters: int, trained: int, byte: str
) -> dict[str, Any]:
    """The final numbers; `notes` are those of the last checkpoint, and cover all processes of the run.

    Of a run that trained but `trained` parameters of all also their number; of one that began with another one's
    `before`, what was measured then; of labels the accuracy; `byte`, see `Feed.byte`, where it is not every byte.
    """
    lines = read_metrics(run_dir / run_directory.METRICS)
    last = next(line for line in reversed(lines) if "tokens" in line)
    best = checkpoints.best(
        checkpoints.finished(run_dir / run_directory.CHECKPOINTS)
    )  # the one that `load` opens
    more = {"trained_parameters": trained} if trained != num_parameters else {}
    if byte != "byte":
        more["byte"] = byte
    if notes["before"]:
        more["before"] = {name: notes["before"][name] for name in MEASURED if name in notes["before"]}
    more |= {
        f"validation_{name}": notes["validation"][name]
        for name in MEASURED[2:]
        if name in notes["validation"]
    }
    return {
        "parameters": num_parameters,
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": round(notes["seconds"], 1),
        "step_seconds": round(notes["step_seconds"], 1),
        "tokens_per_second": round(last["tokens"] / notes["step_seconds"]),
        "train_loss": last["loss"],
        "validation_loss": notes["validation"]["loss"],
        "validation_bpb": notes["validation"]["bpb"],
        "best_validation_bpb": best.bpb(),
        "best_step": best.step,
        "peak_memory_bytes": peak_memory_bytes(),
    } | more


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(summary: dict[str, Any]) -> dict[str, str]:
    """The summary as people read it."""
    labels = "validation_accuracy" in summary
    before, trained = summary.get("before", {}), summary.get("trained_parameters")
    bits = "bits per label" if labels else f"bits per {summary.get('byte', 'byte')}"
    best = f"{summary['best_validation_bpb']:.4f} {bits}"
    shown = {
        "parameters": f"{summary['parameters']:,}"
        + (f", of which {trained:,} were trained" if trained else ""),
        "steps": f"{summary['steps']:,}",
        "labels" if labels else "tokens": f"{summary['tokens']:,}",
        "wall time": f"{clock(summary['seconds'])} (of it in steps: {clock(summary['step_seconds'])})",
        "speed in steps": f"{summary['tokens_per_second']:,} {'labels' if labels else 'tokens'}/s",
        "validation loss": f"{summary['validation_loss']:.4f} nats per {'label' if labels else 'token'}",
        "validation": f"accuracy {summary['validation_accuracy']:.4f}"
        if labels
        else f"{summary['validation_bpb']:.4f} {bits}" + (f", before {before['bpb']:.4f}" if before else ""),
        "old text": f"{summary['validation_old_bpb']:.4f} bits per byte"
        + (f", before {before['old_bpb']:.4f}" if before else "")
        if "validation_old_bpb" in summary
        else "",
        "lost": f"{100 * summary['validation_lost']:.3g} % of the validation bytes, by the tokenizer"
        if "validation_lost" in summary
        else "",
        "best": f"{best}, after step {summary['best_step']}",
        "peak memory": f"{summary['peak_memory_bytes'] / 1e9:.2f} GB",
    }
    return {name: value for name, value in shown.items() if value}


def commands(experiment: Experiment, run_dir: Path) -> list[tuple[str, str]]:
    """What is worth trying with a finished run, as (purpose, command): each runs when it is pasted."""
    run, text = ("run_dir", run_dir), experiment.sample.prompt or "In the beginning"
    labels = experiment.train.objective == "label"
    writes_on = experiment.model.architecture == "decoder" and not labels
    python = f"import zerotollm; run = zerotollm.load({str(run_dir)!r})"
    shown = [
        ("how it reads and predicts a text", not labels, launch(run, "explain", ("text", text))),
        ("all of that and its training, as one page", not labels, launch(run, "report")),
        ("a page to talk to it", writes_on, launch(run, "serve")),
        ("tell a label" if labels else "let it write", True, launch(run, "generate", ("prompt", text))),
        ("the held-out test documents", True, launch(run, "evaluate", ("split", "test"))),
        ("look inside", True, f"python -i -c {quoted(python)}"),
    ]
    return [(purpose, command) for purpose, possible, command in shown if possible]
