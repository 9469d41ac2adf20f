"""The runs of a suite on disk, one JSON file each: a run with a file is finished, a run without one is still to do.

    RUN_DIR/BUDGET/VARIANT/seed-0.json            a run at the learning rates of its variant
    RUN_DIR/BUDGET/VARIANT/rate-0.5/seed-0.json   with every learning rate times 0.5, of `--tune True`
    RUN_DIR/BUDGET/table.md, table.json, figure.html, figure.png
    RUN_DIR/BUDGET/published.md                   compared with the numbers of a paper, where it has some
    RUN_DIR/BUDGET/looks.json                     of `--until-shown True`: the fewest and the most seeds

Tables and figures are made from these files alone. The checks at the top serve the points of scaling ladders too.
"""

import json
import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences, from_json, to_json
from zerotollm.host.atomic_files import write_atomically
from zerotollm.significance import Looks
from zerotollm.studies.suite import Variant
from zerotollm.types import Json

FORMAT = 1
"""Version of the files; raised when a field changes meaning."""
TABLE, TABLE_JSON, FIGURE_HTML, FIGURE_PNG = "table.md", "table.json", "figure.html", "figure.png"
PUBLISHED, LOOKS = "published.md", "looks.json"
RATES = (0.5, 1.0, 2.0)
"""Factors of the learning rates that `--tune True` tries."""
RATE_FIELDS = ("learning_rate", "adam_learning_rate", "embedding_learning_rate")

Outcome = Literal["trained", "diverged", "sees the future"]
FieldChange = TypedDict("FieldChange", {"field": str, "from": object, "to": object})
"""A field of the experiment: its value in the base and in the variant."""


class Sources(TypedDict):
    """Fingerprints of a run's inputs; records of earlier versions have none."""

    text: NotRequired[list[int]]
    start: NotRequired[int | None]
    """of the parameters of `train.start_from`"""


class Size(Sources):
    """Numbers that are known before training."""

    parameters: int
    flops_per_token: int


class Measurements(Size):
    """Numbers of one run; None where it was not trained to its end. Not in every version: the ones not required."""

    validation_loss: NotRequired[float | None]
    """nats per token or label"""
    validation_bpb: float | None
    train_loss: NotRequired[float | None]
    """mean over the last 5 % of the steps"""
    validation_accuracy: NotRequired[float | None]
    tokens_per_second: float | None
    trained_parameters: NotRequired[int | None]
    step_bytes: NotRequired[int | None]
    """of memory that a step takes by XLA's account"""
    seconds: NotRequired[float | None]
    """of training and validation"""
    cpu_seconds: NotRequired[float | None]
    """processor time of the same, of all threads: other work on the machine hardly changes it"""
    validation_bleu: NotRequired[float]
    environment: NotRequired[Json]


class RunRecord(Measurements):
    """One file."""

    format: int
    variant: str
    group: str
    change: list[FieldChange]
    paper: str
    sentence: str
    published: NotRequired[dict[str, float] | None]
    seed: int
    rate: float
    """factor of the learning rates"""
    outcome: Outcome
    experiment: Json


def read_record(path: Path, kind: str, accepts: Callable[[Json], bool]) -> Json:
    """Return the JSON object in a file. Raises UsageError where it holds none, or one that is not accepted."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not accepts(record):
        raise UsageError(f"{path} is not {kind}: move it away, or choose another --run-dir")
    return record


def check_experiment(
    path: Path, stored: Json, asked: Experiment, may_differ: Collection[str] = ("data.dir",)
) -> None:
    """Raise UsageError where the experiment `stored` in the file `path` is not the one asked for."""
    before = from_json(json.dumps(stored), str(path))
    changes = [change for change in differences(before, asked) if change[0] not in may_differ]
    if [name for name, _, _ in changes] == ["code.sha256"]:
        raise UsageError(
            f"{asked.code.module} has changed since {path} was trained: bring the code back, or choose another "
            "--run-dir"
        )
    if changes:
        fields = ", ".join(f"{name} {was!r} (now {now!r})" for name, was, now in changes)
        raise UsageError(
            f"{path} was trained with {fields}: give the same values to resume, or choose another --run-dir"
        )


def another_text(path: Path, corpus: str) -> UsageError:
    """Return the error for a run whose corpus had other contents."""
    return UsageError(
        f"{path} was trained on another text of {corpus}: bring that text back, or choose another --run-dir"
    )


def run_path(folder: Path, variant: str, seed: int, rate: float = 1.0) -> Path:
    """Return the file of a run; `rate` is the factor of its learning rates."""
    inner = folder / variant if rate == 1 else folder / variant / f"rate-{rate:g}"
    return inner / f"seed-{seed}.json"


def run_experiment(variant: Variant, seed: int, rate: float = 1.0) -> Experiment:
    """Return the experiment of a run. A seed has the same data order and random streams in every variant."""
    optimizer = variant.experiment.optimizer
    if rate != 1:
        optimizer = replace(optimizer, **{name: getattr(optimizer, name) * rate for name in RATE_FIELDS})
    train = replace(variant.experiment.train, seed=seed)
    return replace(variant.experiment, optimizer=optimizer, train=train)


def write_run(
    folder: Path,
    base: Experiment,
    variant: Variant,
    seed: int,
    rate: float,
    outcome: Outcome,
    measurements: Measurements,
) -> None:
    """Write the record of a finished run."""
    experiment = run_experiment(variant, seed, rate)
    # The folder of prepared data does not change a result, and may be private.
    experiment = replace(experiment, data=replace(experiment.data, dir=""))
    changes = differences(base, variant.experiment)
    record: RunRecord = {
        "format": FORMAT,
        "variant": variant.name,
        "group": variant.group,
        "change": [{"field": name, "from": was, "to": now} for name, was, now in changes],
        "paper": variant.paper,
        "sentence": variant.sentence,
        "published": variant.published,
        "seed": seed,
        "rate": rate,
        "outcome": outcome,
        **measurements,
        "experiment": json.loads(to_json(experiment)),
    }
    text = json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    write_atomically(run_path(folder, variant.name, seed, rate), text + "\n")


def finished(folder: Path, variant: Variant, seed: int, rate: float = 1.0) -> RunRecord | None:
    """Return the run's record, or None where it is still to do.

    Raises UsageError where the file holds a run of another experiment; `data.dir` may differ.
    """
    path = run_path(folder, variant.name, seed, rate)
    if not path.exists():
        return None
    record = read_run(path)
    check_experiment(path, record["experiment"], run_experiment(variant, seed, rate))
    return record


def read_looks(folder: Path) -> Looks | None:
    """Return the design of a suite whose rows get seeds until something is shown; None for a fixed number of seeds."""
    path = folder / LOOKS
    if not path.exists():
        return None
    return Looks(
        **read_record(path, "the looks of a suite", lambda record: record.keys() == set(Looks._fields))
    )


def write_looks(folder: Path, looks: Looks) -> None:
    """Note the design before the first look. Raises UsageError where another one was noted: it can't be changed."""
    before = read_looks(folder)
    if before and before != looks:
        raise UsageError(
            f"{folder} was started with --seeds {before.first} --max-seeds {before.last}: give the same, or choose "
            "another --run-dir"
        )
    write_atomically(folder / LOOKS, json.dumps(looks._asdict()) + "\n")


def source_fields(experiment: Experiment) -> Hashable:
    """Return the fields that decide a run's `Sources`: with equal fields they are equal, unless a file changed."""
    data = replace(experiment.data, dir="", batch_size=1, document_mask=False)
    train = experiment.train
    start = train.start_from, train.start_tokenizer
    return data, experiment.tokenizer, experiment.model.architecture, train.objective, start


def read_run(path: Path) -> RunRecord:
    """Return one record. Raises UsageError where the file is not one."""
    kind = f"a run of a suite in format {FORMAT}"
    return cast(RunRecord, read_record(path, kind, lambda r: r.get("format") == FORMAT and "variant" in r))


def read_runs(folder: Path, sources: Mapping[Hashable, Sources] | None = None) -> list[RunRecord]:
    """Return all finished runs of one budget, in the order of their paths.

    Raises UsageError as `check_folder` does, and where runs with equal `source_fields` read different texts, or
    other ones than `sources`.
    """
    check_folder(folder)
    paths = sorted([*folder.glob("*/seed-*.json"), *folder.glob("*/rate-*/seed-*.json")])
    records, known = [read_run(path) for path in paths], dict(sources or {})
    for path, record in zip(paths, records, strict=True):
        if "text" not in record:
            continue
        experiment = from_json(json.dumps(record["experiment"]), str(path))
        expected = known.setdefault(source_fields(experiment), record)
        if record["text"] != expected.get("text"):
            raise another_text(path, experiment.data.corpus)
        if record.get("start") != expected.get("start"):
            raise UsageError(
                f"{path} was initialized from other parameters of {experiment.train.start_from}: bring that run back, "
                "or choose another --run-dir"
            )
    return records


def check_folder(folder: Path) -> None:
    """Raise UsageError where a folder holds a file that is not of a suite; the folder need not exist."""
    results = (TABLE, TABLE_JSON, FIGURE_HTML, FIGURE_PNG, PUBLISHED, LOOKS)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or name.parts[0] in results or not path.is_file():
            continue
        if not re.fullmatch(r"[^/]+/(rate-[^/]+/)?seed-\d+\.json", name.as_posix()):
            raise UsageError(f"{folder} holds {name}, which is not of a suite: choose another --run-dir")
