"""profile: trace some train steps for Perfetto, and tell where their time goes and how busy the device is."""

import errno
import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import jax

from zerotollm.actions.config import ProfileOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.cores import usable_cores
from zerotollm.planning.device_benchmark import measure_this
from zerotollm.planning.hlo import module_name, operations
from zerotollm.session.step_times import PartTime, longest_table, operation_times, part_table, part_times
from zerotollm.session.timed_jax import jax_side
from zerotollm.types import Json

TRACE = "profile"
Span = tuple[float, float]
"""Begin and end, in seconds."""


class Profile(TypedDict):
    """Result of the action."""

    trace: str
    """path of a file that https://ui.perfetto.dev opens"""
    seconds: list[float]
    """of each step"""
    busy: float
    """share of the time in which the device computes"""
    longest_pause: float
    """longest time in which it does not, in seconds"""
    parts: dict[str, PartTime]
    """time of a step by part of the model; empty on several cores, where operations overlap"""


def profile(experiment: Experiment, run_dir: Path, options: ProfileOptions) -> Profile:
    """Trace train steps, on random tokens with fresh parameters, into `run_dir`.

    On a GPU, or on one core of a CPU, also show the time of each part of the model and the longest operations.
    Raises UsageError where the options are out of range.
    """
    if not options.seconds > 0:
        raise UsageError(f"seconds is {options.seconds}: expected a number above 0")
    facts, measurements = jax_side(experiment, decodes=False)
    folder = run_dir / TRACE
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            times = measurements["train"](options.seconds)
    except jax.errors.JaxRuntimeError as error:
        if "No space left" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
    trace = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    busy, pause = occupied(device_spans(events))
    console = Console(soft_wrap=True)
    console.print(
        f"{len(times)} steps of {facts['parameters']:,} parameters, {sum(times) / len(times) * 1e3:.1f} ms each; the "
        f"device computes {busy:.1%} of the time, its longest pause is {pause * 1e3:.2f} ms: "
        f"open {trace} in https://ui.perfetto.dev"
    )
    parts: dict[str, PartTime] = {}
    if facts["platform"] == "cpu" and usable_cores() > 1:
        console.print("for the time of each operation, take one core, as with taskset -c 0 on Linux")
    else:
        program = facts["program"]
        spent = operation_times(events, module_name(program), operations(program))
        parts = part_times(spent)
        device = measure_this(facts["precision"])
        if parts:
            console.print(part_table(parts, device.flops[facts["precision"]], device.bandwidth), "")
            console.print(longest_table(spent))
    return {"trace": str(trace), "seconds": times, "busy": busy, "longest_pause": pause, "parts": parts}


def device_spans(events: list[Json]) -> list[Span]:
    """Return when a device computes, from a trace's events: a GPU's streams, or the threads of XLA's CPU backend."""
    names = [event for event in events if event.get("ph") == "M"]
    processes = {e["pid"]: e["args"]["name"] for e in names if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in names if e["name"] == "thread_name"}
    spans = [event for event in events if event.get("ph") == "X" and "wait" not in event["name"]]
    gpu = [e for e in spans if processes.get(e["pid"], "").startswith("/device:")]
    cpu = [e for e in spans if threads.get((e["pid"], e["tid"]), "").startswith("tf_XLA")]
    return [(e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in gpu or cpu]


def occupied(spans: Iterable[Span]) -> tuple[float, float]:
    """Return the share of the time between first begin and last end that spans cover, and the longest gap.

    Without spans both are 0.
    """
    ordered = sorted(spans)
    if not ordered:
        return 0.0, 0.0
    begin = end = ordered[0][0]
    covered = gap = 0.0
    for start, stop in ordered:
        gap = max(gap, start - end)
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return (covered / (end - begin) if end > begin else 0.0), gap
