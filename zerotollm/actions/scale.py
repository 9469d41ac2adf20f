"""scale: train a ladder of sizes, fit a scaling law, and test its prediction for a larger run.

A run directory holds `config.json`, `environment.json` and `points/NAME.json` for each run. From the points alone
come, with the same bytes each time, `law.json`, `table.md`, `figure.png` and `figure.html`.
"""

import json
from collections.abc import Callable
from pathlib import Path

from zerotollm import run_directory
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.progress import clock
from zerotollm.studies import ladder as points
from zerotollm.studies import scaling_report as report
from zerotollm.studies.ladder import PointRecord, as_point
from zerotollm.studies.scaling_figure import picture
from zerotollm.studies.scaling_law import CONSTANTS, Fit, Point, Prediction, fit_law, predict
from zerotollm.validation import validate


def scale(
    experiment: Experiment,
    run_dir: Path,
    ladder: Callable[[Experiment], tuple[Experiment, ...]],
    next_size: Callable[[Experiment], Experiment],
) -> tuple[Fit, Prediction, Point]:
    """Train the missing runs: the larger one last, and only after its prediction was written to law.json.

    A finished ladder trains nothing, and writes the same files again. Return the law, its prediction for the larger
    run, and that run. Raises UsageError where the directory or a point belongs to other experiments, or the ladder is
    too short to fit, and RunError where a loss is not finite.
    """
    console = Console(soft_wrap=True)
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
        stored = points.read_points(run_dir, runs)
        if None in stored:
            environment = json.dumps(run_directory.environment(), indent=2) + "\n"
            write_atomically(run_dir / run_directory.ENVIRONMENT, environment)
        jobs = list(zip(runs, stored, strict=True))
        records: list[PointRecord] = []
        trained: list[PointRecord] = []

        def complete(number: int) -> None:
            """Train the run of that number if it is missing, and add its record."""
            run, record = jobs[number]
            if record is None:
                record = points.measure_point(run)
                trained.append(record)
                points.write_point(run_dir, run, record)
                waiting = [run for run, done in jobs[number + 1 :] if not done]
                left = f", {clock(points.seconds_left(trained, waiting))} left" if waiting else ""
                line = report.run_line(as_point(record), record["epochs"])
                console.print(f"run {number + 1}/{len(runs)}: {line} in {clock(record['seconds'])}{left}")
            records.append(record)

        for number in range(len(runs) - 1):
            complete(number)
        fit = fit_law([as_point(record) for record in records])
        N, D = points.run_size(runs[-1], records[0]["vocab_size"])
        prediction = predict(fit, N, D)
        if stored[-1] is None:
            write_atomically(run_dir / "law.json", report.law_json(fit, prediction, N, D, None))
            console.print("", *report.law_lines(fit), "", report.prediction_line(prediction, N, D), sep="\n")
            console.print("Now that run is trained.\n")
        complete(len(runs) - 1)
        measured = as_point(records[-1])
        text = report.table(fit, prediction, measured, [(r["flops"], r["epochs"]) for r in records])
        write_atomically(run_dir / "law.json", report.law_json(fit, prediction, N, D, measured.bpb))
        write_atomically(run_dir / "table.md", text)
        for name in ("figure.png", "figure.html"):
            picture(fit, prediction, measured).save(run_dir / name)
    console.print("", text, *report.law_lines(fit), "", report.prediction_line(prediction, N, D), sep="\n")
    console.print(report.outcome_line(prediction, measured.bpb))
    console.print(f"\nwritten to {run_dir}: law.json, table.md, figure.png, figure.html")
    return fit, prediction, measured
