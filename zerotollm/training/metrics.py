"""metrics.jsonl: one JSON object a line, in the order of the steps; and the same numbers for TensorBoard.

A training line has `step`, `loss` (nats per token, mean over the steps since the previous line), `bpb` (the same in
bits per byte of predicted text), `grad_norm`, `param_norm`, `learning_rate` (of that step) and `tokens` (trained on so
far). A validation line has `step`, `validation_loss` and `validation_bpb`. Clock times are under `timing` only: without
`timing`, a run that was killed and resumed has the same bytes as an uninterrupted one.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zerotollm.errors import RunError
from zerotollm.host.atomic_files import cannot_write, write_atomically
from zerotollm.training import tensorboard
from zerotollm.types import Json

Line = Json
"""A line of metrics.jsonl: `step`, numbers, and perhaps `timing`, a dict of numbers."""


def read_metrics(path: Path) -> list[Line]:
    """Return all lines up to the first that is cut short by a crash or damaged."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                break
            if not _is_valid(line):
                break
            lines.append(line)
    return lines


def _is_valid(line: object) -> bool:
    """Return whether the line has a step, a time in `timing` if there is one, and finite numbers only."""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    values = {"timing": {"time": 0.0}} | line
    timing = values.pop("timing")
    numbers = [*values.values(), timing.get("time")] if isinstance(timing, dict) else [None]
    return all(
        isinstance(x, int | float) and type(x) is not bool and abs(x) <= sys.float_info.max for x in numbers
    )


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard's file. Raises RunError if the disk is full.

    Opening drops the lines after `step`, which will be written again, and rewrites TensorBoard's file. The lines are
    read from `saved`, the copy in a checkpoint, if it exists: that copy has a checksum.
    """

    def __init__(self, path: Path, tensorboard_dir: Path, step: int, saved: Path | None = None):
        self.path = path
        source = saved if saved and saved.exists() else path
        lines = [line for line in read_metrics(source) if line["step"] <= step]
        self.best_bpb = min(
            (line["validation_bpb"] for line in lines if "validation_bpb" in line), default=math.inf
        )
        write_atomically(path, "".join(map(_dump, lines)))
        events = tensorboard_dir / "events.out.tfevents.0.zerotollm"
        write_atomically(events, b"".join([tensorboard.file_header(time.time()), *map(_event, lines)]))
        try:
            self._lines = path.open("ab")
            self._events = events.open("ab")
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, line: Line) -> None:
        """Append one line. From now on it survives a killed process, but not yet a power failure."""
        line["timing"] = {"time": round(time.time(), 3)} | line.get("timing", {})
        try:
            self._lines.write(_dump(line).encode())
            self._lines.flush()
            self._events.write(_event(line))
            self._events.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def sync(self) -> None:
        """Flush all lines to the disk, before a checkpoint refers to them."""
        try:
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Close the files. Every line was flushed when it was written."""
        for file in (self._lines, self._events):
            with suppress(OSError):
                file.close()


class NullMetricsWriter:
    """The `MetricsWriter` of a process that writes nothing."""

    best_bpb = math.inf

    def write(self, line: Line) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _dump(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _event(line: Line) -> bytes:
    curves = {}
    for name, value in line.items():
        if name not in ("step", "tokens", "timing"):
            group, _, rest = name.rpartition("validation_")
            curves[f"{'validation' if group or name != rest else 'train'}/{rest}"] = float(value)
    return tensorboard.scalars(curves, line["step"], float(line.get("timing", {"time": 0.0})["time"]))


MEASURED = ("loss", "bpb", "accuracy", "old_bpb", "lost", "weighted_bpb")
"""Validation metrics: `loss` in nats per token, `bpb`, and for some objectives `accuracy` of labels, `old_bpb` of
another text, the share of bytes that the tokenizer `lost`, and of a mixture the mean weighted by its shares."""
OF_SOURCE = "bpb/"
"""Begins the name of a validation metric: the bits per byte of one corpus of a mixture, `bpb/bible-web`."""


def measured_metrics(validation: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a validation that are recorded."""
    names = [name for name in MEASURED if name in validation]
    return {name: validation[name] for name in (*names, *(n for n in validation if n.startswith(OF_SOURCE)))}


class StepLog:
    """Aggregates the metrics of steps into lines, every `every` steps and at the last one.

    `bpb_per_nat` converts nats per token to bits per byte: tokens / bytes / ln 2 of the training text. `losses` are
    those since the previous line. Checkpoints save them, so that a resumed run writes the same line.
    """

    def __init__(
        self,
        writer: MetricsWriter | NullMetricsWriter,
        *,
        steps: int,
        every: int,
        tokens_per_step: float,
        bpb_per_nat: float,
        losses: list[float],
    ):
        self.losses = losses
        self._writer = writer
        self._steps, self._every = steps, every
        self._tokens_per_step, self._bpb_per_nat = tokens_per_step, bpb_per_nat

    def add(self, step: int, values: dict[str, float], tokens_per_second: float) -> None:
        """Add the metrics of one step. Raises RunError if one of them is not finite."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{name} is {value} at step {step}: training has diverged and stops; earlier checkpoints are kept. "
                    "Start another --run-dir with a lower learning rate or a longer warmup"
                )
        self.losses.append(values["loss"])
        if step % self._every == 0 or step == self._steps:
            loss = math.fsum(self.losses) / len(self.losses)
            self.losses.clear()
            line = {"step": step, "loss": loss, "bpb": loss * self._bpb_per_nat}
            line |= {name: value for name, value in values.items() if name != "loss"}
            line["tokens"] = round(step * self._tokens_per_step)
            self._writer.write(line | {"timing": {"tokens_per_second": round(tokens_per_second, 1)}})

    def validation(self, step: int, measured: dict[str, float]) -> bool:
        """Write the `measured_metrics` of the validation split. Return whether its bits per byte are the best yet."""
        validation = {f"validation_{name}": value for name, value in measured_metrics(measured).items()}
        self._writer.write({"step": step} | validation)
        is_best = measured["bpb"] < self._writer.best_bpb
        self._writer.best_bpb = min(measured["bpb"], self._writer.best_bpb)
        return is_best
