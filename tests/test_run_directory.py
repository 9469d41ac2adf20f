"""A run directory has one owner, one writer and no half-written file."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zerotollm import run_directory
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.files import write_atomically


def test_claiming_twice_with_the_same_experiment_is_fine(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    run_directory.claim(tmp_path, Experiment())
    assert run_directory.read_experiment(tmp_path) == Experiment()


def test_another_experiment_is_refused_by_the_fields_that_differ(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    (tmp_path / run_directory.ENVIRONMENT).write_text("{}")
    other = Experiment()
    other = replace(other, model=replace(other.model, width=512), train=replace(other.train, seed=3))
    with pytest.raises(UsageError, match=r"model\.width 192 \(now 512\), train\.seed 0 \(now 3\)") as caught:
        run_directory.claim(tmp_path, other)
    assert "\n" not in str(caught.value)


def test_a_command_that_failed_before_it_began_takes_no_name_away(tmp_path):
    wrong = Experiment()
    run_directory.claim(tmp_path, replace(wrong, data=replace(wrong.data, corpus="typo.txt")))
    run_directory.claim(tmp_path, Experiment())
    assert run_directory.read_experiment(tmp_path) == Experiment()
    (tmp_path / run_directory.CONFIG).write_text('{"model_type": "gpt2", "architectures": []}')
    with pytest.raises(UsageError, match="no run directory"):  # whose it is, is not known
        run_directory.claim(tmp_path, Experiment())


def test_moved_data_is_the_same_experiment(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    moved = Experiment()
    run_directory.claim(tmp_path, replace(moved, data=replace(moved.data, dir="/elsewhere")))


def test_a_run_may_go_on_in_less_memory_but_not_in_another_precision(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    (tmp_path / run_directory.ENVIRONMENT).write_text("{}")
    asked = Experiment()
    run_directory.claim(tmp_path, replace(asked, compute=replace(asked.compute, remat="full")))
    with pytest.raises(UsageError, match=r"compute\.precision"):
        run_directory.claim(tmp_path, replace(asked, compute=replace(asked.compute, precision="float16")))


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"is no run directory: it holds thesis\.tex"):
        run_directory.claim(tmp_path, Experiment())
    with pytest.raises(UsageError, match="is no run directory"):
        run_directory.read_experiment(tmp_path / "missing")


def test_two_processes_cannot_write_one_directory(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from zerotollm import run_directory\n"
        "with run_directory.locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"is being written by process {other.pid}"):  # noqa: SIM117
            with run_directory.locked(tmp_path / "run"):
                pass
    finally:
        other.kill()  # -9: the lock goes with the process
        other.communicate()
    with run_directory.locked(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(RunError, match="cannot write"):  # noqa: SIM117
            with run_directory.locked(place):
                pass
    with pytest.raises(RunError, match="cannot write"):
        write_atomically(tmp_path / "file" / "x.json", "{}")


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x", "old")

    def fail(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_environment_says_what_numbers_depend_on():
    environment = run_directory.environment()
    assert environment["versions"]["jax"]
    assert environment["devices"]
    json.dumps(environment)


def test_a_disk_too_full_for_the_lock_is_said_with_its_place(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from zerotollm import run_directory\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with run_directory.locked(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "RunError: cannot write" in done.stderr.splitlines()[-1]
    assert ".lock" in done.stderr.splitlines()[-1]
