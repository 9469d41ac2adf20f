"""profile: a trace of some train steps, to be opened in Perfetto: what runs when, and where nothing does."""

from pathlib import Path
from typing import Any

from zerotollm.actions import ProfileOptions
from zerotollm.actions.bench_sides import ours
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment

TRACE = "profile"


def profile(experiment: Experiment, run_dir: Path, options: ProfileOptions) -> dict[str, Any]:
    """Runs steps as training does, on random tokens and fresh parameters, and traces them into `run_dir`.

    Returns `trace`, the path of a file that https://ui.perfetto.dev opens, and `seconds` of each step. Raises
    UsageError where the options are out of range.
    """
    if not options.seconds > 0:
        raise UsageError(f"seconds is {options.seconds}, and must be above 0")
    facts, measurements = ours(experiment, decodes=False)
    # Imported here: jax must not start before `ours` has prepared memory.
    import jax
    from rich.console import Console

    folder = run_dir / TRACE
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        taken = measurements["train"](options.seconds)
    trace = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    Console(soft_wrap=True).print(
        f"{len(taken)} steps of {facts['parameters']:,} parameters, {sum(taken) / len(taken) * 1e3:.1f} ms each: "
        f"open {trace} in https://ui.perfetto.dev",
        highlight=False,
    )
    return {"trace": str(trace), "seconds": taken}
