"""profile: a trace of some train steps, to be opened in Perfetto: what runs when, and where nothing does."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zerotollm.actions.config import ProfileOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.session.timed_sides import ours

TRACE = "profile"


def profile(experiment: Experiment, run_dir: Path, options: ProfileOptions) -> dict[str, Any]:
    """Runs steps as training does, on random tokens and fresh parameters, and traces them into `run_dir`.

    Returns `trace`, the path of a file that https://ui.perfetto.dev opens, `seconds` of each step, and `busy` and
    `longest_pause`, see `occupied`: what the device waits for the host. Raises UsageError where the options are out
    of range.
    """
    if not options.seconds > 0:
        raise UsageError(f"seconds is {options.seconds}, and must be above 0")
    facts, measurements = ours(experiment, decodes=False)
    # Imported here: jax must not start before `ours` has prepared memory.
    import jax

    from zerotollm.console import Console

    folder = run_dir / TRACE
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        taken = measurements["train"](options.seconds)
    trace = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    busy, pause = occupied(device_spans(events))
    Console(soft_wrap=True).print(
        f"{len(taken)} steps of {facts['parameters']:,} parameters, {sum(taken) / len(taken) * 1e3:.1f} ms each; the "
        f"device computes {busy:.1%} of the time, its longest pause is {pause * 1e3:.2f} ms: "
        f"open {trace} in https://ui.perfetto.dev",
        highlight=False,
    )
    return {"trace": str(trace), "seconds": taken, "busy": busy, "longest_pause": pause}


def device_spans(events: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Begin and end, in seconds, of what a device computes, from a trace's events: on a GPU's streams, or else on the
    threads of XLA's CPU backend."""
    names = {
        (event["name"], event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }

    def spans(kind: str, start: str) -> list[tuple[float, float]]:
        return [
            (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
            for event in events
            if event.get("ph") == "X"
            and names.get(
                (kind, event["pid"], event["tid"] if kind == "thread_name" else None), ""
            ).startswith(start)
            and "wait" not in event["name"]
        ]

    return spans("process_name", "/device:") or spans("thread_name", "tf_XLA")


def occupied(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Share of the time from the first span to the end of the last that any of them covers, and the longest time that
    none does. Nothing is covered where there are none."""
    begun = end = None
    covered = pause = 0.0
    for begin, stop in sorted(spans):
        if end is None:
            begun = end = begin
        pause = max(pause, begin - end)
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return (covered / (end - begun) if begun != end else 0.0), pause
