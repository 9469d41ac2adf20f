"""What a run records while it trains: metrics.jsonl, TensorBoard, the display, and what a checkpoint must remember."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict

from zerotollm import run_directory
from zerotollm.data.feed import Feed
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically
from zerotollm.planning.promises import EARLY
from zerotollm.session.progress import Clock, Display, Pace
from zerotollm.session.promise import promise_early
from zerotollm.sharding.processes import is_first, on_first
from zerotollm.training.checkpoints import CheckpointWriter, of_step
from zerotollm.training.config import times
from zerotollm.training.metrics import OF_SOURCE, MetricsWriter, NullMetricsWriter, StepLog
from zerotollm.training.prefetch import DeferredMetrics
from zerotollm.training.step import Metrics, TrainState

LEAD = 20
"""During a save, training continues for at most 1/LEAD of the steps between two checkpoints."""

Validation = dict[str, float]
"""`loss`, `bpb` and other `training.metrics.MEASURED`, where there are: see `StepLog.validation`."""


class Notes(TypedDict):
    """What the host must remember beside the state, in a checkpoint's manifest."""

    text: list[int]
    """fingerprint of the training text"""
    frozen: int | None
    """fingerprint of the frozen parameters"""
    before: Validation | None
    """validation before the first step, where training began with another run's parameters"""
    losses: list[float]
    """since the last line of metrics"""
    validation: Validation | None
    """at this very step, if it was measured"""
    step_seconds: float
    """spent in steps, over all processes of the run"""
    seconds: float
    """in all, over all processes of the run"""
    cpu_seconds: float
    """processor time of all threads, over all processes of the run"""


class RunLog:
    """The record of one process's part of a run, from step `start` on; to be closed."""

    def __init__(
        self,
        run_dir: Path,
        experiment: Experiment,
        feed: Feed,
        display: Display,
        start: int,
        notes: Notes,
        began: Clock,
    ):
        self.notes: Notes = notes
        self._run_dir, self._train, self._feed, self._display = run_dir, experiment.train, feed, display
        # As if all processes of the run were this one.
        self._began = Clock(began.seconds - notes["seconds"], began.cpu_seconds - notes["cpu_seconds"])
        self._saved_at = start
        self._early: list[float] = []
        self._pace = Pace(feed.tokens_per_step, notes["step_seconds"])
        self._skipped = 0.0
        self._deferred = DeferredMetrics(self._read)
        self._metrics_path = run_dir / run_directory.METRICS
        saved = of_step(run_dir / run_directory.CHECKPOINTS, start).path / run_directory.METRICS
        self._metrics = (
            MetricsWriter(self._metrics_path, run_dir / run_directory.TENSORBOARD, start, saved)
            if is_first()
            else NullMetricsWriter()
        )
        self._steps = StepLog(
            self._metrics,
            steps=self._train.steps,
            every=self._train.log_every,
            tokens_per_step=feed.tokens_per_step,
            bpb_per_nat=feed.tokens / feed.num_bytes["train"] / math.log(2),
            losses=notes["losses"],
        )

    def close(self) -> None:
        self._metrics.close()

    def before(self, evaluate: Callable[[], Validation]) -> None:
        """Measure and show the validation before the first step."""
        self.notes["before"] = before = evaluate()
        self._display.say(f"before the first step: {validation_in_words(before, self._feed)}")

    def begin(self, start: int) -> None:
        """Start the clock of the steps: the first one is given to the device now."""
        self._display.begin(start)
        self._pace.begin()

    def step(self, step: int, metrics: Metrics) -> None:
        """Record the metrics of a step, which the device may still be computing."""
        self._deferred.add(step, metrics)
        self.notes = {**self.notes, "validation": None}  # the thread that saves may still read those before

    def _read(self, step: int, values: dict[str, float]) -> None:
        pace, train = self._pace, self._train
        pace.step_done()
        if step <= EARLY:
            self._early.append(pace.last_seconds)
            if len(self._early) == EARLY and is_first():
                promise_early(self._run_dir, self._early)
        if values.get("skipped_steps", 0.0) > self._skipped:
            self._skipped = values["skipped_steps"]
            self._display.say(
                f"step {step} overflowed and was skipped, {self._skipped:.0f} so far; "
                f"the loss scale is now {values['loss_scale']:g}"
            )
        self._steps.add(step, values, pace.tokens_per_second)
        pauses = {  # those due after this very step are still to come
            "validation": (times(step - 1, train.steps, train.eval_every), self._feed.evaluation_steps),
            "sample": (times(step - 1, train.steps, train.sample_every), 2.0),
        }
        left = pace.seconds_left(train.steps - step, pauses)
        self._display.progress(step, values["loss"], pace.tokens_per_second, left)

    @contextmanager
    def _pause(self, kind: str):
        """Time what stops the steps; their metrics are read first."""
        self._deferred.drain()
        with self._pace.pause(kind):
            yield

    def validation(self, step: int, evaluate: Callable[[], Validation]) -> bool:
        """Measure and record the validation after a step; return whether it is the best so far."""
        with self._pause("validation"):
            measured = evaluate()
        self.notes["validation"] = measured
        best = on_first(partial(self._steps.validation, step, measured))
        self._display.validation(step, validation_in_words(measured, self._feed), best)
        return best

    def sample(self, step: int, write: Callable[[], str]) -> None:
        """Let the model write, and keep the text in samples/."""
        with self._pause("sample"):
            text = write()
        if is_first():
            write_atomically(self._run_dir / run_directory.SAMPLES / f"step-{step:06}.txt", text)
        self._display.sample(step, text)

    def save(self, writer: CheckpointWriter, state: TrainState, step: int) -> None:
        """Start to save a checkpoint."""
        with self._pause("save"):
            passed = self._began.passed()
            self.notes = {
                **self.notes,
                "losses": list(self._steps.losses),
                "step_seconds": self._pace.seconds,
                "seconds": passed.seconds,
                "cpu_seconds": passed.cpu_seconds,
            }
            self._metrics.sync()
            writer.save(state.saved(), step, self.notes, self._metrics_path)
        self._saved_at = step

    def limit_lead(self, writer: CheckpointWriter, step: int) -> None:
        """Wait for the disk once training is 1/LEAD of an interval beyond the checkpoint being saved."""
        if step == self._saved_at + self._train.checkpoint_every // LEAD:
            if writer.busy():  # a slow disk, or quick steps: no time of theirs
                with self._pause("slow save"):
                    writer.wait()
            writer.wait()


def validation_in_words(validation: Validation, feed: Feed) -> str:
    """Return a validation as people read it."""
    if feed.labels:
        return f"loss {validation['loss']:.4f} nats per label, accuracy {validation['accuracy']:.4f}"
    others = [(validation[OF_SOURCE + source.corpus], source.corpus) for source in feed.sources]
    others += [(validation["old_bpb"], feed.old.corpus)] if feed.old else []
    on_others = "".join(f", {bpb:.4f} on {corpus}" for bpb, corpus in others)
    return f"loss {validation['loss']:.4f}, {validation['bpb']:.4f} bits per {feed.byte}{on_others}"
