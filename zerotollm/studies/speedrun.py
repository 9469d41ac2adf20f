"""Speedruns: the shortest time to a loss, over several seeds, as records that others can check and beat.

docs/results/speedrun.md has the rules. A record is one JSON file; tables are made from these files alone.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, TypedDict, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zerotollm.data.config import DataConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.significance import shorter_p_value, standard_deviation, upper_p_value
from zerotollm.studies.records import read_record
from zerotollm.studies.table import markdown_table
from zerotollm.types import Json

FORMAT = 1
RECORD = "record.json"
SEEDS = 3
"""The fewest runs of a record."""
SHOWN = 0.05
"""The largest p-value of a loss that is shown to be low enough, and of a time that is shown to be shorter."""
Unit = Literal["bits per byte", "nats per character"]


@dataclass(frozen=True)
class Target:
    """The loss to reach, and the text that it is measured on."""

    loss: float
    unit: Unit
    """nats per character are those per byte, of an ASCII text"""
    text: str
    """`text_digest` of the corpus"""

    def measured(self, bpb: float) -> float:
        """Return bits per byte in the target's unit."""
        return bpb * math.log(2) if self.unit == "nats per character" else bpb


class RunTime(TypedDict):
    """One seed."""

    seed: int
    loss: float
    """over the whole validation split after the last step, in the target's unit"""
    seconds: float
    """from the start of the process to that loss"""
    step_seconds: float
    """of them, in training steps"""
    cpu_seconds: float
    """processor time of the training, of all threads"""


class Record(TypedDict):
    """One file."""

    format: int
    speedrun: str
    """the experiment's name"""
    date: str
    loss: float
    """the target"""
    unit: Unit
    text: str
    runs: list[RunTime]
    product_flops: float
    """per second, the best of many products of matrices on all cores, before and after every run"""
    load: float | None
    """threads that wanted to compute in the minute before the first run"""
    code: str
    """SHA-256 of the package, and versions of numerical packages"""
    environment: Json
    experiment: Json


def text_digest(data: DataConfig) -> str:
    """Return the SHA-256 of the training and validation documents, whatever their files are called."""
    corpus, content = open_corpus(data), hashlib.sha256()
    for split in ("train", "validation"):
        for document in corpus.splits[split]:
            content.update(document.text.encode() + b"\0")
        content.update(b"\1")
    return content.hexdigest()


def loss_p_value(record: Record) -> float:
    """Return the p-value of a mean loss above the target: Student's t test, one-sided, over the seeds."""
    return upper_p_value([record["loss"] - run["loss"] for run in record["runs"]])


def work(record: Record) -> list[float]:
    """Return for each run the operations that the machine's matrix product could have done in its time, in 10^12."""
    return [run["seconds"] * record["product_flops"] / 1e12 for run in record["runs"]]


def is_valid(record: Record) -> bool:
    """Return whether there are enough runs, and their mean loss is shown to be at most the target."""
    return len(record["runs"]) >= SEEDS and loss_p_value(record) <= SHOWN


def read_records(folder: Path) -> dict[str, Record]:
    """Return the records of a folder by file name, the oldest first. Raises UsageError for any other JSON file."""
    paths = folder.glob("*.json")
    records = {path.name: _read(path) for path in paths}
    return dict(sorted(records.items(), key=lambda item: (item[1]["date"], item[0])))


def holds_records(folder: Path) -> bool:
    """Return whether a folder holds records of a speedrun rather than a suite."""
    return any(
        "product_flops" in path.read_text(encoding="utf-8", errors="replace")
        for path in folder.glob("*.json")
    )


def _read(path: Path) -> Record:
    kind = f"a record of a speedrun in format {FORMAT}"
    return cast(
        Record,
        read_record(path, kind, lambda r: r.get("format") == FORMAT and r.keys() >= Record.__required_keys__),
    )


def rows(records: dict[str, Record]) -> list[dict[str, str]]:
    """Return the cells of each record, by heading.

    Times are compared as `work`, so that a faster machine is no faster recipe.
    """
    found, before = [], None
    for name, record in records.items():
        losses, times = [run["loss"] for run in record["runs"]], [run["seconds"] for run in record["runs"]]
        p_value = shorter_p_value(work(record), work(before)) if before else None
        row = {
            "record": name.removesuffix(".json"),
            "date": record["date"],
            "runs": str(len(losses)),
            f"{record['unit']}, mean": _with_deviation(losses, 4),
            "p of a loss above the target": f"{loss_p_value(record):.2g}",
            "seconds, mean": _with_deviation(times, 1),
            "TFLOP of matrix products in that time": _with_deviation(work(record), 2),
            "p of no shorter time than the record before": "" if p_value is None else f"{p_value:.2g}",
            "verdict": _verdict(record, p_value),
        }
        found.append(row)
        if row["verdict"] == "record":
            before = record
    return found


def _verdict(record: Record, p_value: float | None) -> str:
    if len(record["runs"]) < SEEDS:
        return f"fewer than {SEEDS} runs"
    if loss_p_value(record) > SHOWN:
        return "the target is not shown to be reached"
    return "record" if p_value is None or p_value <= SHOWN else "not shown to be shorter"


def _with_deviation(values: Sequence[float], digits: int) -> str:
    deviation = standard_deviation(values)
    return f"{fmean(values):.{digits}f}" + ("" if deviation is None else f" (sd {deviation:.{digits}f})")


def terminal_table(records: dict[str, Record]) -> Table:
    """Return the records as a table."""
    cells = rows(records)
    table = Table(*cells[0], box=SIMPLE_HEAD)
    for row in cells:
        table.add_row(*row.values())
    return table


def markdown(records: dict[str, Record]) -> str:
    """Return the records as a Markdown table without a newline at its end."""
    cells = rows(records)
    return markdown_table([*cells[0]], [[*row.values()] for row in cells])


def to_text(record: Record) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
