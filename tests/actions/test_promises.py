"""promises: the calibration of the runs in a folder, and what it says where there are none."""

import json
from pathlib import Path

import pytest

from zerotollm.actions.config import PromisesOptions
from zerotollm.actions.promises import promises
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment


def keep(folder: Path, name: str, *held: bool, **not_judged: str) -> None:
    """Writes the summary of a run with one promise of its memory for each of `held`."""
    (folder / name).mkdir(parents=True)
    (folder / name / "promise.json").write_text("{}")
    kept = [
        {
            "quantity": "peak_memory_bytes",
            "when": "before",
            "value": 100e6,
            "low": 90e6,
            "high": 110e6,
            "measured": 100e6 if hold else 220e6,
            "held": hold,
        }
        for hold in held
    ]
    outcome = {"kept": kept, "not_judged": not_judged, "load": 0.1}
    (folder / name / "summary.json").write_text(json.dumps({"promises": outcome}))


def calibrated(folder: Path, into: str = ""):
    return promises(Experiment(), Path("runs/base"), PromisesOptions(str(folder), into))


def test_tells_how_often_and_the_worst_misses(tmp_path, capsys):
    for number in range(9):
        keep(tmp_path, f"deep/run-{number}", True)
    keep(tmp_path, "wrong", False)
    keep(tmp_path, "resumed", seconds="the run was resumed")
    (tmp_path / "going").mkdir()
    (tmp_path / "going" / "promise.json").write_text("{}")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    (tmp_path / "old" / "summary.json").write_text("{}")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table promises -->\n<!-- end -->\n")
    calibrated(tmp_path, str(page))
    shown = capsys.readouterr().out
    assert "11 runs with a promise" in shown
    assert "90% [60%, 98%]" in shown
    assert "missed: wrong, peak memory 220 MB, foretold 100 MB (90 to 110) before step 1" in shown
    assert "not judged in 1 of the runs: wall time: the run was resumed" in shown
    assert "unfinished: going" in shown
    assert "without a promise: old" in shown
    assert "| peak memory | before step 1 | 10 | 9 | 90% [60%, 98%] |" in page.read_text()


def test_a_folder_without_runs_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        calibrated(tmp_path / "none")
    with pytest.raises(UsageError, match="no finished run with a promise: train one"):
        calibrated(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    (tmp_path / "old" / "summary.json").write_text("{}")
    with pytest.raises(UsageError, match="1 without a promise"):
        calibrated(tmp_path)
    (tmp_path / "old" / "summary.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        calibrated(tmp_path)
