"""The end of a run: summary.json, its table, and commands to try next."""

import json
import re
from pathlib import Path

import numpy as np

from zerotollm import run_directory
from zerotollm.data.feed import Feed
from zerotollm.experiment import Experiment, continues, task_of
from zerotollm.host.atomic_files import write_atomically
from zerotollm.host.cores import load_average
from zerotollm.host.peak_memory import peak_memory_bytes
from zerotollm.planning.promises import LABELS, judge
from zerotollm.session.compiled_training import CompiledTraining
from zerotollm.session.progress import clock
from zerotollm.session.promise import read_promise
from zerotollm.session.run_log import Notes
from zerotollm.shell import launch, quoted
from zerotollm.training import checkpoints
from zerotollm.training.metrics import OF_SOURCE, measured_metrics, read_metrics
from zerotollm.types import Json

Summary = Json
"""What summary.json holds: see `write_summary`."""
EXAMPLE_TOKENS, EXAMPLE_WORDS, EXAMPLE_CHARACTERS = 64, 5, 60
"""Most of a held-out text that is read, and that makes a prompt."""


def write_summary(run_dir: Path, training: CompiledTraining, notes: Notes) -> Summary:
    """Write summary.json, the final numbers over all processes of the run, and return what it holds.

    Some runs add the number of trainable parameters, the unit of bits (`byte`, see `Feed.byte`), the validation of the
    run that they were initialized from (`before`), accuracy, the loss on old text or `example`, see `held_out_words`.
    """
    lines = read_metrics(run_dir / run_directory.METRICS)
    last = next(line for line in reversed(lines) if "tokens" in line)
    # The checkpoint that `load` opens.
    best = checkpoints.best(checkpoints.finished(run_dir / run_directory.CHECKPOINTS))
    validation, before = notes["validation"] or {}, notes["before"]
    summary: Summary = {
        "parameters": training.num_parameters,
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": round(notes["seconds"], 1),
        "step_seconds": round(notes["step_seconds"], 1),
        "cpu_seconds": round(notes["cpu_seconds"], 1),
        "tokens_per_second": round(last["tokens"] / notes["step_seconds"]),
        "train_loss": last["loss"],
        "validation_loss": validation["loss"],
        "validation_bpb": validation["bpb"],
        "best_validation_bpb": best.bpb(),
        "best_step": best.step,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if promises := read_promise(run_dir):
        summary["promises"] = judge(promises, summary, load_average())
    if training.trainable_parameters != training.num_parameters:
        summary["trained_parameters"] = training.trainable_parameters
    if training.feed.byte != "byte":
        summary["byte"] = training.feed.byte
    if before:
        summary["before"] = measured_metrics(before)
    if example := held_out_words(training.experiment, training.feed):
        summary["example"] = example
    summary |= {f"validation_{name}": value for name, value in measured_metrics(validation).items()}
    write_atomically(run_dir / run_directory.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def rows(summary: Summary) -> dict[str, str]:
    """Return the summary as people read it."""
    labels = "validation_accuracy" in summary
    before, trained = summary.get("before", {}), summary.get("trained_parameters")
    unit, units = ("label", "labels") if labels else ("token", "tokens")
    bits = "bits per label" if labels else f"bits per {summary.get('byte', 'byte')}"
    lost, old = summary.get("validation_lost"), summary.get("validation_old_bpb")
    validation = f"{summary['validation_bpb']:.4f} {bits}" + (
        f", before {before['bpb']:.4f}" if before else ""
    )
    if labels:
        validation = f"accuracy {summary['validation_accuracy']:.4f}"
    texts = {
        "parameters": f"{summary['parameters']:,}"
        + (f", of which {trained:,} were trained" if trained else ""),
        "steps": f"{summary['steps']:,}",
        units: f"{summary['tokens']:,}",
        "wall time": f"{clock(summary['seconds'])} (of it in steps: {clock(summary['step_seconds'])})",
        "speed in steps": f"{summary['tokens_per_second']:,} {units}/s",
        "validation loss": f"{summary['validation_loss']:.4f} nats per {unit}",
        "validation": validation,
    }
    start = f"validation_{OF_SOURCE}"
    for name in filter(lambda name: name.startswith(start), summary):
        texts[name.removeprefix(start)] = f"{summary[name]:.4f} bits per byte"
    if "validation_weighted_bpb" in summary:
        texts["by weights"] = f"{summary['validation_weighted_bpb']:.4f} bits per byte, mean of these"
    if old is not None:
        texts["old text"] = f"{old:.4f} bits per byte" + (
            f", before {before['old_bpb']:.4f}" if before else ""
        )
    if lost is not None:
        texts["lost"] = f"{100 * lost:.3g} % of the validation bytes, by the tokenizer"
    if "promises" in summary and (kept := summary["promises"]["kept"]):
        missed = [LABELS[entry["quantity"]] for entry in kept if not entry["held"]]
        texts["promises"] = f"{len(kept) - len(missed)} of {len(kept)} intervals held" + (
            f", not those of {', '.join(missed)}" if missed else ""
        )
    return texts | {
        "best": f"{summary['best_validation_bpb']:.4f} {bits}, after step {summary['best_step']}",
        "peak memory": f"{summary['peak_memory_bytes'] / 1e9:.2f} GB",
    }


def held_out_words(experiment: Experiment, feed: Feed) -> str:
    """Return the first words of a held-out text: a prompt that fits the data.

    "" for a Bible, which the default prompt fits, and for a model that continues no text.
    """
    if not continues(experiment) or "bible-" in experiment.data.corpus:
        return ""
    ids_T, bos_id = feed.evaluation("validation")[0]["inputs"][0, :EXAMPLE_TOKENS], feed.tokenizer.bos_id
    texts = [feed.tokenizer.decode(part) for part in np.split(ids_T, np.flatnonzero(ids_T == bos_id))]
    text = next(filter(None, map(str.strip, texts)), "")
    later = re.search(r"[.!?\n]\s*(?=\S)", text)
    if text[:1].islower() and later:  # the text was cut within a sentence
        text = text[later.end() :]
    return " ".join(text.split()[:EXAMPLE_WORDS])[:EXAMPLE_CHARACTERS].rstrip("\ufffd")


def commands(experiment: Experiment, run_dir: Path, example: str = "") -> list[tuple[str, str]]:
    """Return what to try with a finished run, as (purpose, command): each command runs when it is pasted.

    `example` is a prompt that fits the data, see `held_out_words`.
    """
    run, text = ("run_dir", run_dir), example or experiment.sample.prompt or "In the beginning"
    labels = task_of(experiment) == "label"
    python = f"import zerotollm; run = zerotollm.load({str(run_dir)!r})"
    possible = [
        ("how it reads and predicts a text", not labels, launch(run, "explain", ("text", text))),
        ("all of that and its training, as one page", not labels, launch(run, "report")),
        ("a page to talk to it", continues(experiment), launch(run, "serve")),
        ("tell a label" if labels else "let it write", True, launch(run, "generate", ("prompt", text))),
        ("the held-out test documents", True, launch(run, "evaluate", ("split", "test"))),
        ("look inside", True, f"python -i -c {quoted(python)}"),
    ]
    return [(purpose, command) for purpose, applies, command in possible if applies]
