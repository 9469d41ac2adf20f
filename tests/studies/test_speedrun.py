"""Speedruns: what a record is, which one beats another, and the command with a target of seconds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import speedrun_char, speedrun_words
from zerotollm.actions.config import SpeedrunOptions, TabulateOptions
from zerotollm.actions.speedrun import speedrun
from zerotollm.actions.tabulate import tabulate
from zerotollm.actions.train import train
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.run_directory import read_experiment
from zerotollm.studies.speedrun import (
    FORMAT,
    Record,
    Target,
    is_valid,
    read_records,
    rows,
    text_digest,
    to_text,
    work,
)


def record(date: str, losses: list[float], seconds: list[float], flops: float = 1e11) -> Record:
    return {
        "format": FORMAT,
        "speedrun": "words",
        "date": date,
        "loss": 1.18,
        "unit": "bits per byte",
        "text": "",
        "runs": [
            {"seed": seed, "loss": loss, "seconds": time, "step_seconds": time, "cpu_seconds": time}
            for seed, (loss, time) in enumerate(zip(losses, seconds, strict=True))
        ],
        "product_flops": flops,
        "load": 0.0,
        "code": "",
        "environment": {},
        "experiment": {},
    }


LOW, SLOW, QUICK = [1.171, 1.172, 1.173], [200.0, 201.0, 202.0], [100.0, 101.0, 102.0]


def test_a_record_has_three_runs_whose_mean_is_shown_to_be_at_the_target():
    assert is_valid(record("2026-01-01", LOW, SLOW))
    assert not is_valid(record("2026-01-01", LOW[:2], SLOW[:2]))
    assert not is_valid(record("2026-01-01", [1.170, 1.175, 1.190], SLOW))


def test_a_record_falls_to_one_that_is_shown_to_take_less_of_any_machine():
    records = {
        "first.json": record("2026-01-01", LOW, SLOW),
        "quicker.json": record("2026-01-02", LOW, QUICK),
        "not-shorter.json": record("2026-01-03", LOW, [90.0, 101.0, 110.0]),
        "other-machine.json": record("2026-01-04", LOW, [50.0, 51.0, 52.0], flops=2e11),
        "too-high.json": record("2026-01-05", [1.2, 1.2, 1.21], [10.0, 10.1, 10.2]),
        "two.json": record("2026-01-06", LOW[:2], QUICK[:2]),
    }
    assert [row["verdict"] for row in rows(records)] == [
        "record",
        "record",
        "not shown to be shorter",
        "not shown to be shorter",
        "the target is not shown to be reached",
        "fewer than 3 runs",
    ]
    assert work(records["other-machine.json"]) == pytest.approx([10.0, 10.2, 10.4])


def test_a_folder_of_records_is_a_table(tmp_path, capsys):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "b.json").write_text(to_text(record("2026-01-01", LOW, SLOW)))
    (folder / "a.json").write_text(to_text(record("2026-01-02", LOW, QUICK)))
    assert list(read_records(folder)) == ["b.json", "a.json"]
    page = tmp_path / "page.md"
    page.write_text("<!-- table words -->\n<!-- end -->\n")
    tabulate(Experiment(), folder, TabulateOptions(str(page)))
    assert "| a | 2026-01-02 | 3 | 1.1720 (sd 0.0010) |" in page.read_text()
    assert "verdict" in capsys.readouterr().out
    (folder / "c.json").write_text("{}")
    with pytest.raises(UsageError, match=r"c\.json is not a record of a speedrun"):
        tabulate(Experiment(), folder, TabulateOptions())


def test_the_text_is_known_by_its_content(tiny, tmp_path):
    text = Path(tiny.data.corpus).read_bytes()
    (tmp_path / "other.txt").write_bytes(text)
    other = replace(tiny.data, corpus=str(tmp_path / "other.txt"))
    assert text_digest(other) == text_digest(tiny.data)
    assert text_digest(replace(other, validation_fraction=0.2)) != text_digest(tiny.data)
    (tmp_path / "other.txt").write_bytes(text + b"more")
    assert text_digest(other) != text_digest(tiny.data)


def test_the_targets_name_their_texts():
    assert speedrun_words.target().text == text_digest(speedrun_words.experiment().data)
    assert speedrun_words.target().measured(1.18) == 1.18
    assert speedrun_char.target().measured(2.1203) == pytest.approx(1.4697, abs=1e-4)


def goal(tiny: Experiment, loss: float) -> Callable[[], Target]:
    return lambda: Target(loss, "bits per byte", text_digest(tiny.data))


def test_another_text_or_an_interrupted_seed_is_one_line(tiny, tmp_path):
    with pytest.raises(UsageError, match="is not the one that this speedrun is about"):
        speedrun(tiny, tmp_path, lambda: Target(1.0, "bits per byte", "another"), SpeedrunOptions())
    with pytest.raises(UsageError, match="expected at least 1"):
        speedrun(tiny, tmp_path, goal(tiny, 9.0), SpeedrunOptions(seeds=0))
    (tmp_path / "seed-0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="was interrupted, and a resumed run has no time: delete"):
        speedrun(tiny, tmp_path, goal(tiny, 9.0), SpeedrunOptions())


@pytest.fixture
def in_this_process(monkeypatch):
    """Seeds train here, in a second each, and the machine's rate is a number."""

    def run(run_dir: Path) -> int:
        train(read_experiment(run_dir), run_dir)
        return 0

    monkeypatch.setattr("zerotollm.actions.speedrun.train_by_command", run)
    monkeypatch.setattr("zerotollm.actions.speedrun.product_flops", lambda precision: 1e11)


def check_record(tiny: Experiment, folder: Path) -> None:
    short = replace(tiny, train=replace(tiny.train, steps=20))
    written = speedrun(short, folder, goal(tiny, 9.0), SpeedrunOptions())
    assert is_valid(written)
    assert [run["seed"] for run in written["runs"]] == [0, 1, 2]
    assert all(0 < run["step_seconds"] <= run["seconds"] for run in written["runs"])
    assert json.loads((folder / "record.json").read_text()) == written
    assert written["experiment"]["data"]["corpus"] == "text.txt"
    assert str(folder) not in json.dumps(written)


def test_writes_a_record_and_trains_no_seed_twice(tiny, tmp_path, monkeypatch, in_this_process):
    check_record(tiny, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "record.json").read_text())
    short = replace(tiny, train=replace(tiny.train, steps=20))
    with pytest.raises(RunError, match=r"not shown to be at most 0\.5 bits per byte"):
        speedrun(short, tmp_path / "run", goal(tiny, 0.5), SpeedrunOptions())
    assert json.loads((tmp_path / "run" / "record.json").read_text())["runs"] == before["runs"]
    with pytest.raises(UsageError, match="belongs to a run with"):
        speedrun(tiny, tmp_path / "run", goal(tiny, 9.0), SpeedrunOptions())
    monkeypatch.setattr("zerotollm.actions.speedrun.code_version", lambda *folders: "other")
    with pytest.raises(UsageError, match="the code has changed since"):
        speedrun(short, tmp_path / "run", goal(tiny, 9.0), SpeedrunOptions())


@pytest.mark.slow
def test_every_seed_is_a_command_of_its_own(tiny, tmp_path):
    check_record(tiny, tmp_path / "run")
