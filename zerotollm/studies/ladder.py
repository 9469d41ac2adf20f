"""The runs of a scaling ladder: trained in memory, stored as `points/NAME.json`, and their time left."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from zerotollm.components import dataset_of
from zerotollm.experiment import Experiment, to_json
from zerotollm.host.atomic_files import write_atomically
from zerotollm.model.config import resolve
from zerotollm.planning.flops import counted_parameters, tokens_trained_on, train_flops
from zerotollm.run_directory import MAY_MOVE
from zerotollm.session.train_in_memory import compile_programs, fit
from zerotollm.studies.records import another_text, check_experiment, read_record
from zerotollm.studies.scaling_law import Point
from zerotollm.types import Json


class PointRecord(TypedDict):
    """One file."""

    experiment: Json
    parameters: int
    """N of `zerotollm.planning.flops.counted_parameters`"""
    vocab_size: int
    text: list[int]
    """fingerprint of the training text"""
    tokens: int
    epochs: float
    flops: int
    """of the matrix products"""
    loss: float
    bpb: float
    seconds: float
    compile_seconds: float


def measure_point(run: Experiment) -> PointRecord:
    """Train a run in memory and return its record."""
    began = time.monotonic()
    programs = compile_programs(run)
    [fitted] = fit(programs, [run.train.seed])
    tokens = tokens_trained_on(run)
    return {
        "experiment": json.loads(to_json(run)),
        "parameters": counted_parameters(programs.experiment.model),
        "vocab_size": programs.feed.tokenizer.vocab_size,
        "text": programs.feed.fingerprint,
        "tokens": tokens,
        "epochs": tokens / programs.feed.tokens,
        "flops": tokens * train_flops(programs.experiment.model, run.data.context),
        "loss": fitted.validation["loss"],
        "bpb": fitted.validation["bpb"],
        "seconds": time.monotonic() - began,
        "compile_seconds": programs.compile_seconds,
    }


def point_path(run_dir: Path, run: Experiment) -> Path:
    """Return the file of a run."""
    return run_dir / "points" / f"{run.name}.json"


def write_point(run_dir: Path, run: Experiment, record: PointRecord) -> None:
    """Write the record of a run."""
    write_atomically(point_path(run_dir, run), json.dumps(record, indent=2) + "\n")


def read_points(run_dir: Path, runs: Sequence[Experiment]) -> list[PointRecord | None]:
    """Return the record of each run, None where it is still to do.

    Raises UsageError where a file is not a point, or one of another experiment or of another text.
    """
    records = [_read_point(point_path(run_dir, run), run) for run in runs]
    text = dataset_of(runs[0]).fingerprint if any(records) else []
    for run, record in zip(runs, records, strict=True):
        if record and record["text"] != text:
            raise another_text(point_path(run_dir, run), run.data.corpus)
    return records


def _read_point(path: Path, run: Experiment) -> PointRecord | None:
    if not path.exists():
        return None
    record = read_record(path, "a point of a ladder", lambda r: r.keys() >= PointRecord.__required_keys__)
    check_experiment(path, record["experiment"], run, MAY_MOVE)
    return cast(PointRecord, record)


def as_point(record: PointRecord) -> Point:
    """Return what the law is fitted to."""
    return Point(record["experiment"]["name"], record["parameters"], record["tokens"], record["bpb"])


def run_size(run: Experiment, vocab_size: int) -> tuple[int, int]:
    """Return N and D of a run without training it; `vocab_size` is the tokenizer's, which may be smaller than asked."""
    model = resolve(run.model, vocab_size=vocab_size, context=run.data.context)
    return counted_parameters(model), tokens_trained_on(run)


def seconds_left(trained: Sequence[PointRecord], waiting: Sequence[Experiment]) -> float:
    """Return the time left, from the runs that this process trained: each compiles, then works at the fastest rate.

    The fastest rate, because small models come first and keep a machine less busy than those that take most time.
    """
    compiling = sum(record["compile_seconds"] for record in trained) / len(trained)
    rate = max(r["parameters"] * r["tokens"] / (r["seconds"] - r["compile_seconds"]) for r in trained)
    sizes = [run_size(run, trained[0]["vocab_size"]) for run in waiting]
    return sum(N * D for N, D in sizes) / rate + len(waiting) * compiling
