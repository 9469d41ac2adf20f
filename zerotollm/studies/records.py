"""The runs of a suite on disk, one small JSON file each: what is there is finished, what is not is still to be done.

    RUN_DIR/BUDGET/VARIANT/seed-0.json            a run at the rates of its variant
    RUN_DIR/BUDGET/VARIANT/rate-0.5/seed-0.json   with every learning rate times 0.5, of `--tune True`
    RUN_DIR/BUDGET/table.md, table.json, figure.html, figure.png
    RUN_DIR/BUDGET/published.md                   beside the numbers of a paper, where it has some

Tables and figures are made from these files alone. No heavy imports.
"""

import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, differences, from_json, to_json
from zerotollm.host.atomic_files import write_atomically
from zerotollm.studies.suite import Variant

FORMAT = 1
"""Version of the files; raised when a field changes meaning."""
TABLE, TABLE_JSON, FIGURE_HTML, FIGURE_PNG = "table.md", "table.json", "figure.html", "figure.png"
PUBLISHED = "published.md"
RATES = (0.5, 1.0, 2.0)
"""What `--tune True` multiplies the learning rates by."""
RATE_FIELDS = ("learning_rate", "adam_learning_rate", "embedding_learning_rate")

Record = dict[str, Any]
Sources = Mapping[str, Any]
"""Fingerprints of what a run read: `text`, and `start` of the parameters of `train.start_from`; earlier records have
neither."""
Outcome = Literal["trained", "diverged", "sees the future"]


def run_path(folder: Path, variant: str, seed: int, rate: float = 1.0) -> Path:
    """Where a run is kept; `rate` is the factor of its learning rates."""
    inner = folder / variant if rate == 1 else folder / variant / f"rate-{rate:g}"
    return inner / f"seed-{seed}.json"


def run_experiment(variant: Variant, seed: int, rate: float = 1.0) -> Experiment:
    """What such a run trains. The same seed has the same data order and random streams in every variant."""
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
    numbers: Record,
) -> None:
    """Writes one finished run, whole or not at all. `numbers` are its measurements, None where there are none."""
    experiment = run_experiment(variant, seed, rate)
    # Where prepared data lies says nothing about a result, and is nobody's business.
    experiment = replace(experiment, data=replace(experiment.data, dir=""))
    change = [
        {"field": name, "from": was, "to": now} for name, was, now in differences(base, variant.experiment)
    ]
    record = {
        "format": FORMAT,
        "variant": variant.name,
        "group": variant.group,
        "change": change,
        "paper": variant.paper,
        "sentence": variant.sentence,
        "published": variant.published,
        "seed": seed,
        "rate": rate,
        "outcome": outcome,
        **numbers,
        "experiment": json.loads(to_json(experiment)),
    }
    text = json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    write_atomically(run_path(folder, variant.name, seed, rate), text + "\n")


def finished(folder: Path, variant: Variant, seed: int, rate: float = 1.0) -> Record | None:
    """The run's record, or None where it is still to be done.

    Raises UsageError where the file holds a run of another experiment; `data.dir` does not count.
    """
    path = run_path(folder, variant.name, seed, rate)
    if not path.exists():
        return None
    record = read_run(path)
    trained = from_json(json.dumps(record["experiment"]), str(path))
    asked = run_experiment(variant, seed, rate)
    differing = [d for d in differences(trained, asked) if d[0] != "data.dir"]
    if differing:
        fields = ", ".join(f"{name} {was!r} (now {now!r})" for name, was, now in differing)
        raise UsageError(
            f"{path} is a run with {fields}: give the same values to go on with this suite, "
            "or another --run-dir to start a new one"
        )
    return record


def reads(experiment: Experiment) -> Hashable:
    """What decides the fingerprints of an experiment: runs that agree in it read the same, unless a file changed."""
    data = replace(experiment.data, dir="", batch_size=1, document_mask=False)
    train = experiment.train
    return data, experiment.tokenizer, experiment.model.architecture, train.objective, train.start_from


def check_sources(path: Path, record: Record, sources: Sources) -> None:
    """Raises UsageError where a run read another text, or began with other parameters, than `sources` says."""
    experiment = record["experiment"]
    for key, what in (
        ("text", f"on another text of {experiment['data']['corpus']}: bring that text back"),
        ("start", f"from other parameters of {experiment['train']['start_from']}: bring that run back"),
    ):
        if record[key] != sources[key]:
            raise UsageError(f"{path} was trained {what}, or choose another --run-dir")


def read_run(path: Path) -> Record:
    """One record. Raises UsageError where the file is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT or "variant" not in record:
        raise UsageError(
            f"{path} is no run of a suite in format {FORMAT}: move it away, or choose another --run-dir"
        )
    return record


def read_runs(folder: Path, sources: Mapping[Hashable, Sources] | None = None) -> list[Record]:
    """All finished runs of one budget, in the order of their paths.

    Raises UsageError as `check_folder` does, and where runs that agree in `reads` read different texts, or another one
    than `sources` has now.
    """
    check_folder(folder)
    paths = sorted([*folder.glob("*/seed-*.json"), *folder.glob("*/rate-*/seed-*.json")])
    records, known = [read_run(path) for path in paths], dict(sources or {})
    for path, record in zip(paths, records, strict=True):
        if "text" in record:
            key = reads(from_json(json.dumps(record["experiment"]), str(path)))
            check_sources(path, record, known.setdefault(key, record))
    return records


def check_folder(folder: Path) -> None:
    """Raises UsageError where a folder holds what no suite wrote; it need not exist."""
    ours = (TABLE, TABLE_JSON, FIGURE_HTML, FIGURE_PNG, PUBLISHED)
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) or parts[0] in ours:
            continue
        if path.is_file() and not (
            re.fullmatch(r"seed-\d+\.json", parts[-1])
            and (len(parts) == 2 or (len(parts) == 3 and parts[1].startswith("rate-")))
        ):
            raise UsageError(
                f"{folder} holds {path.relative_to(folder)}, which no suite wrote: choose another --run-dir"
            )
