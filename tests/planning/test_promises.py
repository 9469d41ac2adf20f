"""Promises: their constants are those of the kept runs, and nothing is foretold where no kept runs are alike."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from experiments.base import experiment as base
from experiments.scaling import experiment as scaling
from tests.bench_promises import fit, fit_all, read_rows
from zerotollm.data.config import TokenizerConfig
from zerotollm.planning.promises import (
    FITTED,
    LAW,
    Basis,
    Formula,
    Promises,
    foretell,
    foretell_early,
    judge,
    not_by_law,
)

ROOT = Path(__file__).parents[2]
BASIS: Basis = {
    "machine": {
        "platform": "cpu",
        "processor": "one",
        "cores": 2,
        "devices": 1,
        "flops": 1e11,
        "bytes_per_second": 4e10,
    },
    "load": 0.5,
    "steps": 1000,
    "tokens": 1_000_000,
    "parameters": 1_000_000,
    "vocab_size": 1024,
    "sees_previous": True,
    "step_flops": 6e9,
    "step_bytes": 1e9,
    "step_memory": 50_000_000,
    "validations": 1,
    "validation_steps": 50.0,
    "seconds": 10.0,
    "cpu_seconds": 8.0,
    "resident_bytes": 600_000_000,
    "peak_bytes": 650_000_000,
    "not_by_law": "",
}


def with_promise(**others) -> Promises:
    foretold, left_out = foretell(BASIS)
    return {"format": 1, "basis": BASIS, "before": foretold, "left_out": left_out, **others}


def test_the_law_is_the_kept_one():
    kept = json.loads((ROOT / "results/scaling/law.json").read_text())["constants"]
    assert {name: kept[name]["value"] for name in kept if name != "exponent"} == vars(LAW)


def test_more_work_is_foretold_to_take_longer_and_a_busy_machine_to_take_longer_still():
    before, _ = foretell(BASIS)
    more, _ = foretell({**BASIS, "steps": 2000})
    busy, _ = foretell({**BASIS, "seconds": 30.0})
    for quantity in ("cpu_seconds", "seconds"):
        assert more[quantity]["value"] > before[quantity]["value"]
    assert busy["cpu_seconds"] == before["cpu_seconds"]
    assert busy["seconds"]["value"] - 30 == pytest.approx(3 * (before["seconds"]["value"] - 10), rel=1e-2)


def test_the_time_until_the_promise_is_certain():
    before, _ = foretell(BASIS)
    assert before["cpu_seconds"]["low"] > BASIS["cpu_seconds"]
    assert before["seconds"]["low"] > BASIS["seconds"]


def test_the_peak_holds_at_least_what_a_step_allocates():
    small, large = (foretell({**BASIS, "step_memory": size})[0] for size in (50_000_000, 500_000_000))
    assert small["peak_memory_bytes"]["value"] == pytest.approx(701.5e6)
    assert large["peak_memory_bytes"]["value"] == pytest.approx(1100e6)


def test_time_and_memory_are_foretold_only_where_runs_are_kept():
    for machine in ({"platform": "gpu"}, {"devices": 2}):
        foretold, left_out = foretell({**BASIS, "machine": {**BASIS["machine"], **machine}})
        assert set(foretold) == {"validation_bpb"}
        assert set(left_out) == {"cpu_seconds", "seconds", "peak_memory_bytes"}
        assert foretell_early({**BASIS, "machine": {**BASIS["machine"], **machine}}, [1.0] * 10) == {}


def test_the_loss_is_foretold_only_where_the_law_was_fitted():
    run = scaling()
    assert not not_by_law(run, 1_000_000, 1_000_000)
    for other, words in (
        (replace(run, data=replace(run.data, corpus="sotu")), "sotu"),
        (replace(run, train=replace(run.train, start_from="runs/base")), "from scratch"),
        (replace(run, optimizer=replace(run.optimizer, kind="adamw")), "muon"),
        (replace(run, tokenizer=TokenizerConfig(kind="char")), "pieces of words"),
    ):
        assert words in not_by_law(other, 1_000_000, 1_000_000)
    assert "D is 9,000,000" in not_by_law(base(), 1_000_000, 9_000_000)
    assert "N is 10,000" in not_by_law(base(), 10_000, 1_000_000)
    _, left_out = foretell({**BASIS, "not_by_law": "why"})
    assert left_out == {"validation_bpb": "why"}


def test_the_first_steps_foretell_the_others():
    foretold = foretell_early(BASIS, [5.0, *[0.1] * 9])
    assert foretold["step_seconds"]["value"] == pytest.approx(5 + 999 * 0.1, rel=1e-3)


def test_a_number_in_the_interval_is_a_promise_kept():
    promise = with_promise()
    measured = {quantity: p["value"] for quantity, p in promise["before"].items()}
    outcome = judge(promise, {**measured, "peak_memory_bytes": 9e9}, 0.5)
    assert [kept["quantity"] for kept in outcome["kept"] if not kept["held"]] == ["peak_memory_bytes"]


def test_another_machine_says_so():
    promise = with_promise(
        after_early=foretell_early(BASIS, [1.0] * 10), resumed=[{"step": 20, "same_machine": False}]
    )
    outcome = judge(promise, {"validation_bpb": 1.0}, None)
    assert [kept["quantity"] for kept in outcome["kept"]] == ["validation_bpb"]
    assert outcome["not_judged"]["step_seconds"] == "the run was resumed on another machine"


def test_the_constants_are_those_of_the_kept_runs():
    fitted = fit_all(read_rows(ROOT / "results/promises/fitted"))
    assert fitted.keys() == FITTED.keys()
    for quantity, kept in FITTED.items():
        again = fitted[quantity]
        assert again.runs == kept.runs
        numbers = (*again.constants, again.low, again.high)
        assert numbers == pytest.approx((*kept.constants, kept.low, kept.high), rel=0.01), quantity


def test_the_interval_is_that_of_the_errors_of_rows_left_out():
    """Twenty runs of which each is foretold by the mean of the others: the ends are the extreme errors."""
    values = [10.0 + number for number in range(20)]
    rows = [(BASIS, None, {"seconds": value}) for value in values]
    fitted = fit(
        rows,
        lambda row, constants: Formula(0.0, constants[0]),
        lambda rows: (fmean(row[2]["seconds"] for row in rows),),
        "seconds",
    )
    mean = fmean(values)
    assert fitted.constants == (mean,)
    assert fitted.low == pytest.approx(10 / fmean(values[1:]), abs=5e-3)
    assert fitted.high == pytest.approx(29 / fmean(values[:-1]), abs=5e-3)
