"""What a training will cost and reach, foretold before it starts, and how far off that was when it ends.

Every prediction is a formula of what is known before the first step (`Basis`), with constants that
tests/bench_promises.py fits to kept runs (`FITTED`). Its interval holds the errors of that formula on those runs, each
left out of its fit. With n errors the k-th smallest and the k-th largest bound a new one with a probability of at least
1 - 2 k / (n + 1), whatever their distribution, for runs like these (jackknife, arXiv:1905.02928, and conformal
prediction, arXiv:1604.04173). Nothing is foretold where no kept runs are like this one: `left_out` says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, TypedDict

from zerotollm.experiment import Experiment, task_of
from zerotollm.planning.law import Law

FORMAT = 1
"""Version of promise.json; raised when a field changes meaning."""
COVER = 0.9
"""Share of the runs that an interval is meant to hold."""
EARLY = 10
"""Steps after which the time is foretold once more, by their rate."""
REFERENCE_FLOPS = 1e11
"""Rate of a core in whose seconds the constants of time are."""

Quantity = Literal["cpu_seconds", "seconds", "step_seconds", "peak_memory_bytes", "validation_bpb"]
"""Of summary.json. Processor time, of all threads, and wall time are of the whole training; `step_seconds` of its steps
alone."""
LABELS: dict[Quantity, str] = {
    "cpu_seconds": "processor time",
    "seconds": "wall time",
    "step_seconds": "wall time in steps",
    "peak_memory_bytes": "peak memory",
    "validation_bpb": "validation loss",
}
UNITS: dict[Quantity, tuple[float, str]] = {
    "cpu_seconds": (1.0, "s"),
    "seconds": (1.0, "s"),
    "step_seconds": (1.0, "s"),
    "peak_memory_bytes": (1e-6, "MB"),
    "validation_bpb": (1.0, "bits per byte"),
}
"""Factor and unit of a number in a table."""
When = Literal["before", "early"]
"""Before the first step, or after `EARLY` steps."""


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
    vocab_size: int
    sees_previous: bool
    """by token shift or planted heads, it attends to the tokens just before from the first step on"""
    step_flops: float
    step_bytes: float
    """that the compiled step reads and writes, by XLA's account"""
    step_memory: int
    """that the compiled step allocates beside its state, by XLA's account"""
    validations: int
    validation_steps: float
    """operations of one validation, in steps"""
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


class Resumed(TypedDict):
    """Where training went on after it was stopped."""

    step: int
    same_machine: bool


class Promises(TypedDict):
    """promise.json."""

    format: int
    basis: Basis
    before: Foretold
    left_out: dict[Quantity, str]
    """what is not foretold, and why"""
    early: NotRequired[Early]
    """where training began here with more than `EARLY` steps"""
    after_early: NotRequired[Foretold]
    resumed: NotRequired[list[Resumed]]


@dataclass(frozen=True)
class Fitted:
    """The constants of a formula, and an interval of the measured part over the foretold one."""

    constants: tuple[float, ...]
    low: float
    high: float
    runs: int
    """to which it was fitted"""


class Formula(NamedTuple):
    """A prediction: what is certain, and what is to come, which the interval is about."""

    certain: float
    to_come: float


LAW = Law(E=0.948732, A=52.1869, B=158.395, alpha=0.441366, beta=0.453847)
"""The constants of results/scaling/law.json."""
LAW_PARAMETERS, LAW_TOKENS = (87_000, 3_700_000), (250_000, 1_200_000)
"""N and D of the runs that it was fitted to and tested on."""
BEYOND = 2.0
"""How far outside of these ranges the law is trusted."""

FITTED: dict[Quantity, Fitted] = {
    "cpu_seconds": Fitted(constants=(0.5634, 2.312, 1.451), low=0.763, high=1.8, runs=20),
    "seconds": Fitted(constants=(0.7809,), low=0.631, high=2.34, runs=20),
    "step_seconds": Fitted(constants=(), low=0.292, high=1.0, runs=20),
    "peak_memory_bytes": Fitted(constants=(0.0, 101500000.0), low=0.915, high=1.23, runs=20),
    "validation_bpb": Fitted(constants=(0.0213, -0.05014, 0.03165), low=0.938, high=1.1, runs=60),
}
"""By `python tests/bench_promises.py fit results/promises/fitted`."""


def time_terms(basis: Basis) -> tuple[float, ...]:
    """Return what processor time from the first step on is a sum of: products, passes over memory, and a rest.

    The rest, to compile validation and sampling and to write, is the same work in every run, on any core.
    """
    machine, work = basis["machine"], basis["steps"] + basis["validations"] * basis["validation_steps"]
    products = work * basis["step_flops"] / machine["flops"]
    passes = work * basis["step_bytes"] / machine["bytes_per_second"]
    return products, passes, REFERENCE_FLOPS / machine["flops"]


def stretch(basis: Basis) -> float:
    """Return wall time over processor time until the first step: how much the machine is shared with other work."""
    return basis["seconds"] / max(basis["cpu_seconds"], 1e-9)


def cpu_seconds(basis: Basis, constants: Sequence[float]) -> Formula:
    to_come = sum(c * term for c, term in zip(constants, time_terms(basis), strict=True))
    return Formula(basis["cpu_seconds"], to_come)


def seconds(basis: Basis, constants: Sequence[float], cpu: Sequence[float]) -> Formula:
    """The machine is shared as much as it was until now."""
    (factor,) = constants
    return Formula(basis["seconds"], factor * stretch(basis) * cpu_seconds(basis, cpu).to_come)


def peak_memory_bytes(basis: Basis, constants: Sequence[float]) -> Formula:
    """The state is in memory already; to come is what compiling validation and sampling takes, or a larger step."""
    of_step, rest = constants
    to_come = max(of_step * basis["step_memory"] + rest, basis["step_memory"])
    return Formula(0.0, max(basis["peak_bytes"], basis["resident_bytes"] + to_come))


def validation_bpb(basis: Basis, constants: Sequence[float]) -> Formula:
    factor, doubled, unaided = constants
    exponent = (
        factor + doubled * math.log2(basis["vocab_size"] / 1024) + unaided * (not basis["sees_previous"])
    )
    return Formula(0.0, LAW(basis["parameters"], basis["tokens"]) * math.exp(exponent))


def step_seconds(basis: Basis, durations: Sequence[float]) -> Formula:
    """The first step is slow; the later ones of the first `EARLY` are like those to come."""
    first, *others = durations
    return Formula(0.0, first + (basis["steps"] - 1) * sum(others) / len(others))


def foretell(
    basis: Basis, fitted: Mapping[Quantity, Fitted] = FITTED
) -> tuple[Foretold, dict[Quantity, str]]:
    """Return `before` and `left_out` of promise.json."""
    formulas: dict[Quantity, Formula] = {}
    left_out: dict[Quantity, str] = {}
    if other := not_like_kept(basis["machine"]):
        left_out = {"cpu_seconds": other, "seconds": other, "peak_memory_bytes": other}
    else:
        cpu = fitted["cpu_seconds"].constants
        formulas["cpu_seconds"] = cpu_seconds(basis, cpu)
        formulas["seconds"] = seconds(basis, fitted["seconds"].constants, cpu)
        formulas["peak_memory_bytes"] = peak_memory_bytes(basis, fitted["peak_memory_bytes"].constants)
    if why := basis["not_by_law"]:
        left_out["validation_bpb"] = why
    else:
        formulas["validation_bpb"] = validation_bpb(basis, fitted["validation_bpb"].constants)
    return {name: interval(formula, fitted[name]) for name, formula in formulas.items()}, left_out


def foretell_early(
    basis: Basis, durations: Sequence[float], fitted: Mapping[Quantity, Fitted] = FITTED
) -> Foretold:
    """Return `after_early` of promise.json."""
    if not_like_kept(basis["machine"]):
        return {}
    return {"step_seconds": interval(step_seconds(basis, durations), fitted["step_seconds"])}


def interval(formula: Formula, fitted: Fitted) -> Prediction:
    """Return the prediction of a formula with its interval, to four digits."""
    certain, to_come = formula
    value, low, high = (float(f"{certain + x * to_come:.4g}") for x in (1.0, fitted.low, fitted.high))
    return {"value": value, "low": low, "high": high}


def not_like_kept(machine: Machine) -> str:
    """Return why the kept runs say nothing about time and memory on a machine; empty if they do."""
    if machine["platform"] != "cpu":
        return f"all kept runs are of CPUs, and this is a {machine['platform']}"
    return "all kept runs are of one device" if machine["devices"] > 1 else ""


def not_by_law(experiment: Experiment, parameters: int, tokens: int) -> str:
    """Return why the kept scaling law says nothing about the loss of an experiment; empty if it does.

    `parameters` and `tokens` are N and D.
    """
    train, data = experiment.train, experiment.data
    if data.corpus != "bible-web" or task_of(experiment) != "continue":
        return f"the scaling law is of decoders that continue bible-web, and the corpus is {data.corpus}"
    if train.start_from or experiment.code.functions:
        return "the scaling law is of built-in models trained from scratch"
    if experiment.optimizer.kind != "muon" or experiment.tokenizer.kind not in ("bpe", "unigram"):
        return "the scaling law is of muon, and of tokens that are pieces of words"
    for name, value, (least, most) in (("N", parameters, LAW_PARAMETERS), ("D", tokens, LAW_TOKENS)):
        if not least / BEYOND <= value <= most * BEYOND:
            return f"{name} is {value:,}, and the scaling law was fitted to {least:,} to {most:,}"
    return ""


class Kept(Prediction):
    """One prediction and what came of it."""

    quantity: Quantity
    when: When
    measured: float
    held: bool
    """the measured number is in the interval"""


class Outcome(TypedDict):
    """`promises` in summary.json."""

    kept: list[Kept]
    not_judged: dict[str, str]
    """quantity -> why its prediction is not compared"""
    load: float | None
    """threads that wanted to compute in the last minute of the run"""


def judge(promises: Promises, measured: Mapping[str, float], load: float | None) -> Outcome:
    """Compare every prediction of a run with the number `measured` at its end.

    A resumed run started and compiled twice: of its times only that of the steps counts, on the same machine.
    """
    resumed = promises.get("resumed", [])
    moved = not all(entry["same_machine"] for entry in resumed)
    foretold: dict[When, Foretold] = {"before": promises["before"], "early": promises.get("after_early", {})}
    outcome: Outcome = {"kept": [], "not_judged": {}, "load": load}
    for when, predictions in foretold.items():
        for quantity, prediction in predictions.items():
            if quantity != "validation_bpb" and moved:
                outcome["not_judged"][quantity] = "the run was resumed on another machine"
            elif quantity not in ("validation_bpb", "step_seconds") and resumed:
                reason = "the run was resumed: it started and compiled more than once"
                outcome["not_judged"][quantity] = reason
            else:
                number = measured[quantity]
                held = prediction["low"] <= number <= prediction["high"]
                kept: Kept = {
                    "quantity": quantity,
                    "when": when,
                    **prediction,
                    "measured": number,
                    "held": held,
                }
                outcome["kept"].append(kept)
    return outcome


def number_of(quantity: Quantity, value: float) -> str:
    """Return a number with its unit."""
    factor, unit = UNITS[quantity]
    return f"{factor * value:.4g} {unit}"


def in_words(quantity: Quantity, prediction: Prediction) -> str:
    """Return a prediction with its interval and unit."""
    factor, unit = UNITS[quantity]
    value, low, high = (f"{factor * prediction[name]:.4g}" for name in ("value", "low", "high"))
    return f"{value} {unit} ({low} to {high})"
