"""speedrun: train several seeds to a target loss, each by a command of its own, and write the times as a record."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from zerotollm import run_directory
from zerotollm.actions.config import SpeedrunOptions
from zerotollm.components import dataset_of
from zerotollm.console import Console
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, to_json
from zerotollm.host.atomic_files import write_atomically
from zerotollm.host.cores import is_busy, load_average, usable_cores
from zerotollm.planning.device_benchmark import product_flops
from zerotollm.session.progress import clock
from zerotollm.sharding.processes import code_version
from zerotollm.shell import CHECKOUT
from zerotollm.studies.results import wide_console
from zerotollm.studies.speedrun import (
    FORMAT,
    RECORD,
    SEEDS,
    Record,
    RunTime,
    Target,
    is_valid,
    loss_p_value,
    terminal_table,
    text_digest,
    to_text,
)
from zerotollm.studies.train_suite import environment_of_numbers
from zerotollm.training.metrics import read_metrics

PACKAGE = Path(run_directory.__file__).parent
TIME = "speedrun.json"


def speedrun(
    experiment: Experiment, run_dir: Path, target: Callable[[], Target], options: SpeedrunOptions
) -> Record:
    """Train `options.seeds` seeds in RUN_DIR/seed-K, write RUN_DIR/record.json, show it and return it.

    The text is prepared before; compiled programs are not cached. A finished seed is not trained again. Raises
    UsageError where the text is not the target's or a seed was interrupted, RunError where a training fails or the
    mean loss is not shown to be at most the target: the record is written all the same.
    """
    if options.seeds < 1:
        raise UsageError(f"--seeds is {options.seeds}: expected at least 1")
    goal, code, console = target(), code_version(PACKAGE), wide_console()
    feed = dataset_of(experiment)
    if text_digest(experiment.data) != goal.text:
        raise UsageError(
            f"the text of {experiment.data.corpus} or its split is not the one that this speedrun is about: "
            "docs/results/speedrun.md names it"
        )
    if feed.lost:
        raise UsageError("the tokenizer loses bytes of the text, so that its loss is of another text")
    with run_directory.locked(run_dir):
        load, runs, rates = load_average(), [], [product_flops("float32")]
        for seed in range(experiment.train.seed, experiment.train.seed + options.seeds):
            run = replace(experiment, train=replace(experiment.train, seed=seed))
            runs.append(_run(run, run_dir / f"seed-{seed}", goal, code, console))
            rates.append(product_flops("float32"))
        record: Record = {
            "format": FORMAT,
            "speedrun": experiment.name,
            "date": datetime.now(UTC).date().isoformat(),
            "loss": goal.loss,
            "unit": goal.unit,
            "text": goal.text,
            "runs": runs,
            "product_flops": max(rates),
            "load": load,
            "code": code,
            "environment": environment_of_numbers(),
            "experiment": json.loads(to_json(_without_paths(experiment))),
        }
        write_atomically(run_dir / RECORD, to_text(record))
    console.print(terminal_table({RECORD: record}))
    console.print(f"written: {run_dir / RECORD}")
    if is_busy(load, usable_cores()):
        console.print("this machine was busy before: the times are too long for a record")
    if len(runs) < SEEDS:
        console.print(f"a record has {SEEDS} runs or more")
    elif not is_valid(record):
        raise RunError(
            f"the mean loss of {len(runs)} runs is not shown to be at most {goal.loss} {goal.unit} "
            f"(p = {loss_p_value(record):.2g}): train more steps"
        )
    return record


def _without_paths(experiment: Experiment) -> Experiment:
    """Return the experiment with the file's name alone for a text of one's own, and without the folder of its data."""
    data = experiment.data
    corpus = Path(data.corpus).name if Path(data.corpus).exists() else data.corpus
    return replace(experiment, data=replace(data, corpus=corpus, dir=""))


def _run(experiment: Experiment, run_dir: Path, goal: Target, code: str, console: Console) -> RunTime:
    """Train one seed by the command that trains a run directory, and return its time."""
    path, again = run_dir / TIME, f"delete {run_dir}, and give the same command"
    if path.exists():
        run_directory.claim(run_dir, experiment)
        before = run_directory.read_json(path, dict, again)
        if before["code"] != code:
            raise UsageError(f"the code has changed since {run_dir} was trained: {again}")
        return cast(RunTime, before["run"])
    if (run_dir / run_directory.CHECKPOINTS).exists():
        raise UsageError(f"{run_dir} was interrupted, and a resumed run has no time: {again}")
    with run_directory.locked(run_dir):
        run_directory.claim(run_dir, experiment)
    began = time.time()
    exit_code = train_by_command(run_dir)
    summary = run_directory.read_summary(run_dir)
    if exit_code or summary is None:
        raise RunError(f"the training in {run_dir} failed: its error is above")
    last = next(
        line for line in reversed(read_metrics(run_dir / run_directory.METRICS)) if "validation_bpb" in line
    )
    result: RunTime = {
        "seed": experiment.train.seed,
        "loss": goal.measured(last["validation_bpb"]),
        "seconds": round(last["timing"]["time"] - began, 2),
        "step_seconds": summary["step_seconds"],
        "cpu_seconds": summary["cpu_seconds"],
    }
    write_atomically(path, json.dumps({"code": code, "run": result}) + "\n")
    console.print(f"seed {result['seed']}: {result['loss']:.4f} {goal.unit} after {clock(result['seconds'])}")
    return result


def train_by_command(run_dir: Path) -> int:
    """Train a run directory in a process of its own, which compiles all programs, and return its exit code."""
    program = [str(PACKAGE.parent / "launch.py")] if CHECKOUT else ["-m", "zerotollm"]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.call([sys.executable, *program, "--run-dir", str(run_dir), "train"], env=environment)
