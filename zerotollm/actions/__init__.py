"""The verbs of the command line, one file each. Nothing is imported before it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from zerotollm.experiment import Experiment


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured."""

    split: Literal["validation", "test"] = "validation"
    """the held-out documents; look at test once, at the end"""
    checkpoint: Literal["best", "last"] = "best"
    """best: lowest loss on validation; last: newest"""


@dataclass(frozen=True)
class BenchOptions:
    """How long is measured, and against what."""

    against: Literal["nothing", "torch"] = "nothing"
    """torch: the same architecture in PyTorch from the transformers library, in turn with ours"""
    rounds: int = 5
    """times that each measurement is taken, in turn with all others"""
    seconds: float = 2.0
    """length of a measurement in a round, at least one step or one text"""


class Action(NamedTuple):
    """What the command line must know of an action before it imports it.

    The function itself is `zerotollm.actions.NAME.NAME(experiment, run_dir[, options])`.
    """

    summary: str
    options: Callable[[Experiment], Any] | None = None
    """the options as they stand before the command line changes them: a frozen dataclass"""
    reads_run: bool = False
    """works on a run directory, whose own config.json then says what the experiment is"""


ACTIONS: dict[str, Action] = {
    "train": Action("train, or go on where the last run of it stopped (the default)"),
    "generate": Action("continue a text with the trained model", lambda experiment: experiment.sample, True),
    "evaluate": Action("loss and bits per byte over a whole split", lambda _: EvaluateOptions(), True),
    "bench": Action("speed and memory of training and of generation", lambda _: BenchOptions()),
    "bench-data": Action("tokens/s of tokenization and of the data pipeline"),
}
