"""metrics.jsonl: one JSON object a line, in the order of the steps; and the same numbers for TensorBoard.

A training line has `step`, `loss` (nats per token, mean over the steps since the line before), `bpb` (the
same in bits per byte of what is predicted), `grad_norm`, `param_norm`, `learning_rate` (of that very step) and
`tokens` (trained on so far). A validation line has `step`, `validation_loss` and `validation_bpb`. What a clock
measured is under `timing` and nowhere else: without `timing`, a run that was killed and resumed has the same bytes
as one that never was.
"""

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from zerotollm.errors import RunError
from zerotollm.host.atomic_files import cannot_write, write_atomically
from zerotollm.training import tensorboard


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a crash cut short, or that is no line of ours, ends the reading."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                read = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not _is_ours(read):
                break
            lines.append(read)
    return lines


def _is_ours(line: Any) -> bool:
    """Whether it has a step, all else are finite numbers, and `timing` of numbers."""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    values = {"timing": {"time": 0.0}} | line
    timing = values.pop("timing")
    numbers = [*values.values(), timing.get("time")] if isinstance(timing, dict) else [None]
    return all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in numbers)


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard's file. Raises RunError where the disk takes no more.

    Opening takes out the lines after `step`, which will be written again, and writes TensorBoard's file anew
    from those that stay. Where a checkpoint has `saved` them, they are taken from there: that copy has a checksum.
    """

    def __init__(self, path: Path, tensorboard_dir: Path, step: int, saved: Path | None = None):
        self.path = path
        source = saved if saved and saved.exists() else path
        kept = [line for line in read_metrics(source) if line["step"] <= step]
        self.best_bpb = min(
            (line["validation_bpb"] for line in kept if "validation_bpb" in line), default=math.inf
        )
        write_atomically(path, "".join(map(_dump, kept)))
        events = tensorboard_dir / "events.out.tfevents.0.zerotollm"
        write_atomically(
            events, b"".join([tensorboard.file_header(time.time()), *(_event(line) for line in kept)])
        )
        try:
            self._lines = path.open("ab")
            self._events = events.open("ab")
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, line: dict[str, Any]) -> None:
        """Adds one line; it survives the death of the process, though not yet that of the machine."""
        line["timing"] = {"time": round(time.time(), 3)} | line.get("timing", {})
        try:
            self._lines.write(_dump(line).encode())
            self._lines.flush()
            self._events.write(_event(line))
            self._events.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def sync(self) -> None:
        """Puts all lines on the disk; a checkpoint must not outlive the lines before it."""
        try:
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def close(self) -> None:
        """Every line was flushed when it was written; what could not be was raised then."""
        for file in (self._lines, self._events):
            with suppress(OSError):
                file.close()


class NotWritten:
    """A `MetricsWriter` of a process that writes nothing."""

    best_bpb = math.inf

    def write(self, line: dict[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _event(line: dict[str, Any]) -> bytes:
    curves = {}
    for name, value in line.items():
        if name not in ("step", "tokens", "timing"):
            group, _, rest = name.rpartition("validation_")
            curves[f"{'validation' if group or name != rest else 'train'}/{rest}"] = float(value)
    return tensorboard.scalars(curves, line["step"], float(line.get("timing", {"time": 0.0})["time"]))


MEASURED = ("loss", "bpb", "accuracy", "old_bpb", "lost")


class StepLog:
    """Turns the metrics of single steps into lines, every `every` steps and at the last one.

    `bpb_per_nat` makes bits per byte of nats per token: tokens / bytes / ln 2 of the training text. `losses`
    are those of the steps since the last line; a checkpoint remembers them, so the next line is the same.
    """

    def __init__(
        self,
        writer: MetricsWriter | NotWritten,
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
        """The metrics of one step. Raises RunError where one of them is not finite."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{name} is {value} at step {step}: training has diverged, and stops; checkpoints from "
                    "before are kept. Start another --run-dir with a lower learning rate or a longer warmup"
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
        """The whole validation split: `loss` in nats per token, `bpb`, and where there are `accuracy` of labels, the
        `old_bpb` of another text and the share of bytes that the tokenizer `lost`. True if it is the best yet."""
        shown = {f"validation_{name}": measured[name] for name in MEASURED if name in measured}
        self._writer.write({"step": step} | shown)
        bpb = measured["bpb"]
        best = bpb < self._writer.best_bpb
        self._writer.best_bpb = min(bpb, self._writer.best_bpb)
        return best
