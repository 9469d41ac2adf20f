"""promise.json: what a training foretells of itself before its first step and after ten, and where it resumed."""

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np

from zerotollm.host.atomic_files import write_atomically
from zerotollm.host.cores import load_average, usable_cores
from zerotollm.host.peak_memory import peak_memory_bytes, resident_bytes
from zerotollm.planning.flops import counted_parameters, train_flops
from zerotollm.planning.memory import planned_peak, xla_memory
from zerotollm.planning.promises import (
    FORMAT,
    LABELS,
    Basis,
    Machine,
    Promises,
    Resumed,
    foretell,
    foretell_early,
    in_words,
    not_by_law,
)
from zerotollm.run_directory import PROMISE
from zerotollm.session.compiled_training import CompiledTraining
from zerotollm.session.progress import Clock, Display
from zerotollm.training.config import times

PRODUCT, COPIED = 384, 2**22
"""Rows and columns of the matrices multiplied, and numbers of the array copied, to measure this machine."""
TRIES = 5
"""Measurements of either, of which the fastest counts: 10 milliseconds together."""


def promise(run_dir: Path, training: CompiledTraining, first: int, began: Clock, display: Display) -> None:
    """Write promise.json before step 1, and show it; where training resumes, note there where and on which machine."""
    before = read_promise(run_dir)
    if not first:
        basis = measure_basis(training, began)
        foretold, left_out = foretell(basis)
        _write(run_dir, {"format": FORMAT, "basis": basis, "before": foretold, "left_out": left_out})
        if foretold:
            words = [f"{LABELS[name]} {in_words(name, prediction)}" for name, prediction in foretold.items()]
            display.say(f"foretold: {', '.join(words)}")
    elif before:
        machine = measure_machine()
        resumed: Resumed = {"step": first, "same_machine": is_same(machine, before["basis"]["machine"])}
        before["resumed"] = [*before.get("resumed", []), resumed]
        _write(run_dir, before)


def promise_early(run_dir: Path, durations: Sequence[float]) -> None:
    """Foretell the time of all steps by the `durations` of the first ones, in seconds, where there is a promise."""
    before = read_promise(run_dir)
    if before:
        before["early"] = {"durations": list(durations), "load": load_average()}
        before["after_early"] = foretell_early(before["basis"], durations)
        _write(run_dir, before)


def read_promise(run_dir: Path) -> Promises | None:
    """Return promise.json, or None where there is none of this version: a damaged one must not stop a training."""
    try:
        promises = json.loads((run_dir / PROMISE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(promises, dict) and promises.get("format") == FORMAT
    return cast(Promises, promises) if known and promises.keys() >= Promises.__required_keys__ else None


def _write(run_dir: Path, promises: Promises) -> None:
    write_atomically(run_dir / PROMISE, json.dumps(promises, indent=2, allow_nan=False) + "\n")


def measure_basis(training: CompiledTraining, began: Clock) -> Basis:
    """Return what is known before the first step. Nothing is traced or compiled for it."""
    spent, experiment, feed = began.passed(), training.experiment, training.feed
    train, model, data = experiment.train, experiment.model, experiment.data
    parameters, tokens = counted_parameters(model), round(train.steps * feed.tokens_per_step)
    programs = training.train_program.compiled().values()
    costs = [program.cost_analysis() or {} for program in programs]
    sizes = [xla_memory(program) for program in programs]
    flops = float(np.mean([cost.get("flops", 0.0) for cost in costs]))
    if not experiment.code.functions and training.trainable_parameters == training.num_parameters:
        # XLA counts one round of a loop, over layers or chunks.
        flops = max(flops, train_flops(model, data.context) * feed.tokens_per_step)
    return {
        "machine": measure_machine(),
        "load": load_average(),
        "steps": train.steps,
        "tokens": tokens,
        "parameters": parameters,
        "vocab_size": feed.vocab_size,
        "sees_previous": model.token_shift > 0 or model.previous_token_heads > 0,
        "step_flops": flops,
        "step_bytes": float(np.mean([cost.get("bytes accessed", 0.0) for cost in costs])),
        "step_memory": max((planned_peak(size) - size["arguments"] for size in sizes if size), default=0),
        "validations": times(0, train.steps, train.eval_every),
        "validation_steps": feed.evaluation_steps,
        "seconds": spent.seconds,
        "cpu_seconds": spent.cpu_seconds,
        "resident_bytes": resident_bytes(),
        "peak_bytes": peak_memory_bytes(),
        "not_by_law": not_by_law(experiment, parameters, tokens),
    }


def measure_machine() -> Machine:
    """Return the processor and its rates, of one core, as far as ten milliseconds tell."""
    matrix, numbers = np.ones((PRODUCT, PRODUCT), np.float32), np.ones(COPIED, np.float32)
    copy = np.zeros_like(numbers)
    began, products, copies = time.perf_counter(), [], []
    for _ in range(TRIES):
        np.matmul(matrix, matrix)
        products.append(time.perf_counter() - began)
        np.copyto(copy, numbers)
        copies.append(time.perf_counter() - began - products[-1])
        began = time.perf_counter()
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "processor": processor_name() if device.platform == "cpu" else device.device_kind,
        "cores": usable_cores(),
        "devices": len(jax.devices()),
        "flops": 2 * PRODUCT**3 / min(products),
        "bytes_per_second": 2 * numbers.nbytes / min(copies),
    }


def is_same(one: Machine, other: Machine) -> bool:
    """Return whether two descriptions may be of the same machine; its rates vary with what else it does."""
    return all(one[name] == other[name] for name in ("platform", "processor", "cores", "devices"))


def processor_name() -> str:
    """Return the maker's name of the processor, or an empty text."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
