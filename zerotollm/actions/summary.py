"""The end of a run: summary.json, the table that people see, and the commands worth trying next."""

import resource
import sys
from pathlib import Path
from typing import Any

from zerotollm import run_directory
from zerotollm.actions.progress import clock
from zerotollm.experiment import Experiment
from zerotollm.training.metrics import read_metrics


def summarize(run_dir: Path, notes: dict[str, Any], num_parameters: int) -> dict[str, Any]:
    """The final numbers; `notes` are those of the last checkpoint, and cover all processes of the run."""
    lines = read_metrics(run_dir / run_directory.METRICS)
    last = next(line for line in reversed(lines) if "tokens" in line)
    best = min((line for line in lines if "validation_bpb" in line), key=lambda line: line["validation_bpb"])
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
        "best_validation_bpb": best["validation_bpb"],
        "best_step": best["step"],
        "peak_memory_bytes": peak_memory_bytes(),
    }


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(summary: dict[str, Any]) -> dict[str, str]:
    """The summary as people read it."""
    return {
        "parameters": f"{summary['parameters']:,}",
        "steps": f"{summary['steps']:,}",
        "tokens": f"{summary['tokens']:,}",
        "wall time": f"{clock(summary['seconds'])} (of it in steps: {clock(summary['step_seconds'])})",
        "speed in steps": f"{summary['tokens_per_second']:,} tokens/s",
        "validation loss": f"{summary['validation_loss']:.4f} nats per token",
        "validation": f"{summary['validation_bpb']:.4f} bits per byte",
        "best": f"{summary['best_validation_bpb']:.4f} bits per byte, after step {summary['best_step']}",
        "peak memory": f"{summary['peak_memory_bytes'] / 1e9:.2f} GB",
    }


def commands(experiment: Experiment, run_dir: Path) -> list[tuple[str, str]]:
    """Three things worth trying with a finished run: (purpose, command)."""
    launch = f"python launch.py --experiment {experiment.name}"
    if run_dir != Path("runs") / experiment.name:
        launch += f" --run-dir {run_dir}"
    return [
        ("let it write", f'{launch} generate --prompt "{experiment.sample.prompt or "In the beginning"}"'),
        ("the held-out test documents", f"{launch} evaluate --split test"),
        ("look inside", f"python -i -c \"import zerotollm; run = zerotollm.load('{run_dir}')\""),
    ]
