"""What a training will cost and reach, foretold before it starts, and how far off that was when it ends.

Every prediction is a formula of what is known before the first step (`Basis`), with constants that
tests/bench_promises.py fits to kept runs (`FITTED`). Its interval holds the errors of that formula on those runs, each
left out of its fit. With n errors the k-th smallest and the k-th largest bound a new one with a probability of at least
1 - 2 k / (n + 1), whatever their distribution, for runs like these (jackknife, arXiv:1905.02928, and conformal
prediction, arXiv:1604.04173). Nothing is foretold where no kept runs are like this one: `left_out` says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from zerotollm.experiment import Experiment, task_of

FORMAT = 1
"""Version of promise.json; raised when a field changes meaning."""
COVER = 0.9
"""Share of the runs that an interval is meant to hold."""
EARLY = 10
"""Steps after which the time is foretold once more, by their rate."""

Quantity = Literal["cpu_seconds", "seconds", "step_seconds", "peak_memory_bytes", "validation_bpb"]
"""Of summary.json. Processor time, of all threads, and wall time are of the whole training; `step_seconds` of its steps
alone."""


class Machine(TypedDict):
    """Where a training runs. The rates are of one core, measured in ten milliseconds: other work lowers them."""

    platform: str
    processor: str
    cores: int
    devices: int
    flops: float
    """per second in a product of matrices in float32"""
    bytes_per_second: float
    """read and written by a copy"""


class Basis(TypedDict):
    """What is known before the first step. A step's numbers are means over the shapes of batches."""

    machine: Machine
    load: float | None
    """threads that wanted to compute in the last minute; this process counts too"""
    steps: int
    tokens: int
    """D of the scaling law"""
    parameters: int
    """N of the scaling law: `zerotollm.planning.flops.counted_parameters`"""
    step_flops: float
    step_bytes: float
    """that the compiled step reads and writes, by XLA's account"""
    step_memory: int
    """that the compiled step allocates beside its state, by XLA's account"""
    state_bytes: int
    validations: int
    validation_steps: float
    """operations of one validation, in steps"""
    samples: int
    seconds: float
    """wall time until now, from the start of the action"""
    cpu_seconds: float
    """processor time of all threads, likewise"""
    resident_bytes: int
    peak_bytes: int
    not_by_law: str
    """why the scaling law says nothing about this run; empty if it does"""


class Prediction(TypedDict):
    """A number foretold, with the ends of its interval."""

    value: float
    low: float
    high: float


class Early(TypedDict):
    """Measured in the first steps."""

    durations: list[float]
    """seconds of wall time of each of them"""
    load: float | None


Foretold = dict[Quantity, Prediction]


class Promises(TypedDict):
    """promise.json."""

    format: int
    basis: Basis
    before: Foretold
    left_out: dict[Quantity, str]
    """what is not foretold, and why"""
    early: NotRequired[Early]
    after_early: NotRequired[Foretold]
    resumed: NotRequired[list[dict[str, int | bool]]]
    """`step` after which the training was resumed, and whether on the `same_machine`"""


@dataclass(frozen=True)
class Fitted:
    """A formula's constants and the interval of measured over foretold."""

    constants: tuple[float, ...]
    low: float
    high: float
    runs: int


FITTED: dict[str, Fitted] = {}


def foretell(basis: Basis) -> dict[str, object]:
    """Return `before` and `left_out` of promise.json."""
    return {"before": {}, "left_out": {}}


def foretell_early(basis: Basis, durations: Sequence[float], load: float | None) -> dict[str, object]:
    """Return `early` and `after_early` of promise.json."""
    return {"early": {"durations": list(durations), "load": load}, "after_early": {}}


def not_by_law(experiment: Experiment) -> str:
    """Return why the kept scaling law says nothing about the loss of an experiment; empty if it does."""
    train, data = experiment.train, experiment.data
    if data.corpus != "bible-web" or task_of(experiment) != "continue":
        return f"the scaling law is of bible-web, continued by a decoder, and this is {data.corpus}"
    if train.start_from or experiment.code.functions:
        return "the scaling law is of built-in models trained from scratch"
    if experiment.optimizer.kind != "muon" or experiment.tokenizer.kind not in ("bpe", "unigram"):
        return "the scaling law is of tokens of several bytes and of muon"
    return ""
