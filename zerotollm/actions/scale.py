"""scale: trains a ladder of sizes, fits a scaling law to it, and puts its prediction for a larger run to the test.

A run directory holds `config.json`, `environment.json`, `points/NAME.json` for each run, and what is made of these
points alone, the same bytes each time: `law.json`, `table.md`, `figure.png`, `figure.html`.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zerotollm import run_directory
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences, from_json, to_json, validate
from zerotollm.host.atomic_files import write_atomically
from zerotollm.model.config import resolve
from zerotollm.planning.flops import train_flops
from zerotollm.studies.scaling_law import (
    CONSTANTS,
    Fit,
    Point,
    Prediction,
    counted_parameters,
    fit_law,
    predict,
)

POINTS = "points"


class Scaled(NamedTuple):
    """What the action found."""

    fit: Fit
    prediction: Prediction
    measured: Point
    """the larger run"""


def scale(
    experiment: Experiment,
    run_dir: Path,
    ladder: Callable[[Experiment], tuple[Experiment, ...]],
    next_size: Callable[[Experiment], Experiment],
) -> Scaled:
    """Trains what is missing, the larger run last and only after its prediction has been written to law.json.

    Run again it trains nothing, and writes the same files. Raises UsageError where the directory or a point in
    it belongs to other experiments, or the ladder is too short to fit, and RunError where a loss is not finite.
    """
    # Imported here: what the command line asks of this file should not wait for them.
    from zerotollm.console import Console
    from zerotollm.run import cache_compiled_programs
    from zerotollm.session.progress import clock
    from zerotollm.studies.scaling_figure import picture
    from zerotollm.studies.scaling_report import (
        law_json,
        law_lines,
        outcome_line,
        prediction_line,
        run_line,
        table,
    )

    def say(text: str) -> None:
        Console().print(text, markup=False, highlight=False, soft_wrap=True)

    runs = (*ladder(experiment), next_size(experiment))
    if len(runs) - 1 <= CONSTANTS:
        raise UsageError(
            f"the ladder of {experiment.name} has {len(runs) - 1} runs: {CONSTANTS} constants need more than that"
        )
    for run in runs:
        validate(run)
    cache_compiled_programs(experiment.data)
    with run_directory.locked(run_dir):
        run_directory.claim(run_dir, experiment)
        # All are read before the first is trained: what does not belong here is found at once.
        records = [read_point(run_dir, run) for run in runs]
        if any(records):
            check_same_text(run_dir, runs, records)
        if None in records:
            environment = json.dumps(run_directory.environment(), indent=2) + "\n"
            write_atomically(run_dir / run_directory.ENVIRONMENT, environment)
        trained: list[dict[str, Any]] = []

        def complete(index: int) -> Point:
            if records[index] is None:
                records[index] = measure(runs[index])
                trained.append(records[index])
                write_atomically(
                    point_path(run_dir, runs[index]), json.dumps(records[index], indent=2) + "\n"
                )
                waiting = [run for run, record in zip(runs, records, strict=True) if record is None]
                left = f", {clock(seconds_left(trained, waiting))} left" if waiting else ""
                line = run_line(as_point(records[index]), records[index]["epochs"])
                say(f"run {index + 1}/{len(runs)}: {line} in {clock(records[index]['seconds'])}{left}")
            return as_point(records[index])

        fit = fit_law([complete(index) for index in range(len(runs) - 1)])
        N, D = size(runs[-1], records[0]["vocab_size"])
        prediction = predict(fit, N, D)
        if records[-1] is None:
            write_atomically(run_dir / "law.json", law_json(fit, prediction, N, D, None))
            say("\n" + "\n".join(law_lines(fit)))
            say("\n" + prediction_line(prediction, N, D) + "\nNow that run is trained.\n")
        measured = complete(len(runs) - 1)
        text = table(fit, prediction, measured, [(r["flops"], r["epochs"]) for r in records])
        write_atomically(run_dir / "law.json", law_json(fit, prediction, N, D, measured.bpb))
        write_atomically(run_dir / "table.md", text)
        for name in ("figure.png", "figure.html"):
            picture(fit, prediction, measured).save(run_dir / name)
    say("\n" + text + "\n" + "\n".join(law_lines(fit)))
    say("\n" + prediction_line(prediction, N, D) + "\n" + outcome_line(prediction, measured.bpb))
    say(f"\nwritten to {run_dir}: law.json, table.md, figure.png, figure.html")
    return Scaled(fit, prediction, measured)


def measure(run: Experiment) -> dict[str, Any]:
    """One run trained in memory, as what is stored of it: JSON values."""
    from zerotollm.session.train_in_memory import compile_programs, fit

    begun = time.monotonic()
    programs = compile_programs(run)
    (fitted,) = fit(programs, [run.train.seed])
    tokens = run.train.steps * run.data.batch_size * run.data.context
    return {
        "experiment": json.loads(to_json(run)),
        "parameters": counted_parameters(programs.model),
        "vocab_size": programs.feed.tokenizer.vocab_size,
        "text": programs.feed.fingerprint,
        "tokens": tokens,
        "epochs": tokens / programs.feed.tokens,
        "flops": tokens * train_flops(programs.model, run.data.context),
        "loss": fitted.validation["loss"],
        "bpb": fitted.validation["bpb"],
        "seconds": time.monotonic() - begun,
        "compile_seconds": programs.compile_seconds,
    }


def point_path(run_dir: Path, run: Experiment) -> Path:
    return run_dir / POINTS / f"{run.name}.json"


def read_point(run_dir: Path, run: Experiment) -> dict[str, Any] | None:
    """What `measure` gave for that run, or None. Raises UsageError where the file is of another experiment."""
    path = point_path(run_dir, run)
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        as_point(record), record["text"]
        was = from_json(json.dumps(record["experiment"]), str(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path} is no point of a ladder: delete it, or choose another --run-dir") from None
    differing = [d for d in differences(was, run) if d[0] not in run_directory.MAY_MOVE]
    if differing:
        fields = ", ".join(f"{name} {old!r} (now {new!r})" for name, old, new in differing)
        raise UsageError(f"{path} was trained with {fields}: choose another --run-dir, or delete it")
    return record


def check_same_text(run_dir: Path, runs: Sequence[Experiment], records: Sequence[Any]) -> None:
    """Raises UsageError where a point was trained on another text than the corpus now holds, under the same name."""
    from zerotollm.session.data import feed_of

    text = feed_of(runs[0]).fingerprint
    for run, record in zip(runs, records, strict=True):
        if record and record["text"] != text:
            raise UsageError(
                f"{point_path(run_dir, run)} was trained on another text of {run.data.corpus}: bring that text back, "
                "or choose another --run-dir"
            )


def as_point(record: dict[str, Any]) -> Point:
    return Point(record["experiment"]["name"], record["parameters"], record["tokens"], record["bpb"])


def size(run: Experiment, vocab_size: int) -> tuple[int, int]:
    """N and D of a run, without training it; the tokenizer's vocabulary may be smaller than was asked for."""
    model = resolve(run.model, vocab_size=vocab_size, context=run.data.context)
    return counted_parameters(model), run.train.steps * run.data.batch_size * run.data.context


def seconds_left(trained: Sequence[dict[str, Any]], waiting: Sequence[Experiment]) -> float:
    """From what this process has trained: each run compiles, then works at the rate of the fastest.

    Small models, which come first, keep a machine less busy than those that take most of the time.
    """
    compiling = sum(record["compile_seconds"] for record in trained) / len(trained)
    rate = max(r["parameters"] * r["tokens"] / (r["seconds"] - r["compile_seconds"]) for r in trained)
    sizes = [size(run, trained[0]["vocab_size"]) for run in waiting]
    return sum(N * D for N, D in sizes) / rate + len(waiting) * compiling
