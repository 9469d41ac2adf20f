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
from zerotollm.host.load import is_busy, load_average
from zerotollm.planning.device_benchmark import product_flops
from zerotollm.session.devices import usable_cores
from zerotollm.session.progress import clock
from zerotollm.sharding.processes import code_version
from zerotollm.shell import CHECKOUT
from zerotollm.studies.results import wide_console
from zerotollm.studies.speedrun import (
    FORMAT,
    RECORD,
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
    goal, console = target(), wide_console()
    feed = dataset_of(experiment)
    if text_digest(experiment.data) != goal.text:
        raise UsageError(
            f"the text of {experiment.data.corpus} or its split is not the one that this speedrun is about: "
            "docs/results/speedrun.md names it"
        )
    if feed.lost:
        raise UsageError("the tokenizer loses bytes of the text, so that its loss is of another text")
    with run_directory.locked(run_dir):
        runs, rates = [], [product_flops("float32")]
        for seed in range(experiment.train.seed, experiment.train.seed + options.seeds):
            run = replace(experiment, train=replace(experiment.train, seed=seed))
            runs.append(_run(run, run_dir / f"seed-{seed}", goal, console))
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
            "code": code_version(PACKAGE),
            "environment": environment_of_numbers(),
            "experiment": json.loads(to_json(replace(experiment, data=replace(experiment.data, dir="")))),
        }
        write_atomically(run_dir / RECORD, to_text(record))
    console.print(terminal_table({RECORD: record}))
    console.print(f"written: {run_dir / RECORD}")
    if any(is_busy(run["load"], usable_cores()) for run in runs):
        console.print("this machine was busy when a run started: the times are too long for a record")
    if not is_valid(record):
        raise RunError(
            f"the mean loss of {len(runs)} runs is not shown to be at most {goal.loss} {goal.unit} "
            f"(p = {loss_p_value(record):.2g}): train more steps or seeds"
        )
    return record


def _run(experiment: Experiment, run_dir: Path, goal: Target, console: Console) -> RunTime:
    """Train one seed by the command that trains a run directory, and return its time."""
    path = run_dir / TIME
    if path.exists():
        return cast(RunTime, run_directory.read_json(path, dict, f"delete {run_dir}"))
    if (run_dir / run_directory.CHECKPOINTS).exists():
        raise UsageError(
            f"{run_dir} was interrupted, and a resumed run has no time: delete it, and give the same command"
        )
    with run_directory.locked(run_dir):
        run_directory.claim(run_dir, experiment)
    program = [str(PACKAGE.parent / "launch.py")] if CHECKOUT else ["-m", "zerotollm"]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    load, began = load_average(), time.time()
    done = subprocess.run([sys.executable, *program, "--run-dir", str(run_dir), "train"], env=environment)
    summary = run_directory.read_summary(run_dir)
    if done.returncode or summary is None:
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
        "load": load,
    }
    write_atomically(path, json.dumps(result) + "\n")
    console.print(f"seed {result['seed']}: {result['loss']:.4f} {goal.unit} after {clock(result['seconds'])}")
    return result
