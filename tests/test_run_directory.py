"""A run directory has one owner, one writer and no half-written file."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zerotollm import run_directory
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment, to_json
from zerotollm.host.atomic_files import write_atomically


def test_claiming_twice_with_the_same_experiment_is_fine(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    run_directory.claim(tmp_path, Experiment())
    assert run_directory.read_experiment(tmp_path) == Experiment()


def test_another_experiment_is_refused_by_the_fields_that_differ(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    (tmp_path / run_directory.CHECKPOINTS / "00000100").mkdir(parents=True)
    other = Experiment()
    other = replace(other, model=replace(other.model, width=512), train=replace(other.train, seed=3))
    with pytest.raises(UsageError, match=r"model\.width 192 \(now 512\), train\.seed 0 \(now 3\)") as caught:
        run_directory.claim(tmp_path, other)
    assert "\n" not in str(caught.value)


def test_a_failed_command_does_not_occupy_the_name(tmp_path):
    wrong = Experiment()
    run_directory.claim(tmp_path, replace(wrong, data=replace(wrong.data, corpus="typo.txt")))
    run_directory.claim(tmp_path, Experiment())
    assert run_directory.read_experiment(tmp_path) == Experiment()
    (tmp_path / run_directory.CONFIG).write_text('{"model_type": "gpt2", "architectures": []}')
    with pytest.raises(UsageError, match="no run directory"):  # whose it is, is not known
        run_directory.claim(tmp_path, Experiment())


def test_a_run_without_a_checkpoint_is_new(tmp_path):
    """What a process that was killed early has left must not become part of another run, but is no run either."""
    run_directory.claim(tmp_path, Experiment(name="first"))
    begun = (run_directory.TOKENIZER, run_directory.METRICS, run_directory.LABELS, run_directory.BENCH)
    for name in begun:
        (tmp_path / name).write_text("old")
    (tmp_path / run_directory.CHECKPOINTS / ".00000100.saving").mkdir(parents=True)
    (tmp_path / run_directory.SAMPLES).mkdir()
    run_directory.claim(tmp_path, Experiment(name="first"))
    assert (tmp_path / run_directory.METRICS).exists()
    run_directory.claim(tmp_path, Experiment(name="second"))
    assert run_directory.read_experiment(tmp_path).name == "second"
    assert {path.name for path in tmp_path.iterdir()} == {run_directory.CONFIG, run_directory.BENCH}
    (tmp_path / "points").mkdir()  # of a scaling law, which has no checkpoints
    with pytest.raises(UsageError, match="name 'second'"):
        run_directory.claim(tmp_path, Experiment(name="third"))


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("base --train.steps 9", "base --train.steps 9 --run-dir runs/a-2"),
        ("base --run-dir=runs/a train", "base train --run-dir runs/a-2"),
        ("base --run_dir runs/a --name 'a b'", "base --name 'a b' --run-dir runs/a-2"),
        ("base --train.mesh data=2 fsdp=2", "base --train.mesh data=2 fsdp=2 --run-dir runs/a-2"),
    ],
)
def test_a_refusal_says_the_command_for_another_directory(typed, again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/a/launch.py", *shlex.split(typed)])
    run_dir = Path("runs/a")
    (run_dir / run_directory.CHECKPOINTS / "00000100").mkdir(parents=True)
    with pytest.raises(UsageError, match="is no run directory") as caught:
        run_directory.claim(run_dir, Experiment())
    commands = [str(caught.value).rpartition("a new run: python launch.py ")[2]]
    (run_dir / run_directory.CONFIG).write_text(to_json(Experiment()))
    with pytest.raises(UsageError, match="belongs to a run") as caught:
        run_directory.claim(run_dir, Experiment(name="other"))
    commands.append(str(caught.value).rpartition("a new run: python launch.py ")[2])
    for command in commands:
        assert shlex.split(command) == shlex.split(again)
    Path("runs/a-2").mkdir()
    with pytest.raises(UsageError, match="runs/a-3"):
        run_directory.claim(run_dir, Experiment(name="other"))


def test_more_steps_for_a_finished_run_say_how_to_train_further(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch.py", "base", "--train.steps", "900"])
    run_dir, base = Path("runs/base"), Experiment()
    longer = replace(base, train=replace(base.train, steps=900))
    (run_dir / run_directory.CHECKPOINTS / "00001650").mkdir(parents=True)
    (run_dir / run_directory.CONFIG).write_text(to_json(base))
    with pytest.raises(UsageError) as caught:
        run_directory.claim(run_dir, longer)
    assert "--init-from" not in str(caught.value)  # it can still be finished
    (run_dir / run_directory.SUMMARY).write_text("{}")
    with pytest.raises(UsageError) as caught:
        run_directory.claim(run_dir, longer)
    command = "python launch.py base --train.steps 900 --init-from runs/base --run-dir runs/base-2"
    assert command in str(caught.value)


@pytest.mark.parametrize("noted", [True, False])
def test_the_pretrained_run_is_found(noted, tmp_path, monkeypatch):
    """From any working directory, moved together, or moved alone with a note; never a folder that is no run."""
    here = tmp_path / "here"
    start, run_dir = here / "runs" / "start", here / "runs" / "deep" / "lora"
    for path in (start, run_dir):
        path.mkdir(parents=True)
        (path / run_directory.CONFIG).write_text("{}")
    base = Experiment()
    experiment = replace(base, train=replace(base.train, start_from="runs/start"))
    (run_dir / run_directory.CONFIG).write_text(to_json(experiment))
    monkeypatch.chdir(here)
    # As it is written, if the run is there.
    assert run_directory.located(run_dir, experiment) == experiment
    assert run_directory.located(Path("runs/deep/lora"), experiment) == experiment
    if noted:
        note = run_directory.note_of_start(run_dir, experiment)
        (run_dir / run_directory.ENVIRONMENT).write_text(json.dumps(note))
    monkeypatch.chdir("/")
    assert run_directory.starts(run_dir, "runs/start") == [str(start)]
    assert run_directory.starts(run_dir, "runs/start", f"{here}/runs/../runs/start") == [
        f"{here}/runs/../runs/start"
    ]
    moved = tmp_path / "moved"
    here.rename(moved)
    run_dir, start = moved / "runs/deep/lora", moved / "runs/start"
    assert run_directory.starts(run_dir, "runs/start") == [str(start)]
    moved.rename(here)
    alone = tmp_path / "alone"
    (here / "runs" / "deep" / "lora").rename(alone)
    assert run_directory.starts(alone, "runs/start") == ([str(here / "runs/start")] if noted else [])
    assert run_directory.located(alone, base) == base


def test_a_run_resumes_if_its_start_is_spelled_in_another_way(tmp_path, monkeypatch):
    start, run_dir, base = tmp_path / "start", tmp_path / "run", Experiment()
    for path in (start, run_dir / run_directory.CHECKPOINTS / "00000100"):
        path.mkdir(parents=True)
    (start / run_directory.CONFIG).write_text("{}")

    def starting_from(path: object) -> Experiment:
        return replace(base, train=replace(base.train, start_from=str(path)))

    monkeypatch.chdir(tmp_path)
    (run_dir / run_directory.CONFIG).write_text(to_json(starting_from("start")))
    monkeypatch.chdir("/")
    run_directory.claim(run_dir, starting_from(start))
    with pytest.raises(UsageError, match="start_from 'start' "):
        run_directory.claim(run_dir, starting_from(tmp_path / "other"))


def test_moved_data_is_the_same_experiment(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    moved = Experiment()
    run_directory.claim(tmp_path, replace(moved, data=replace(moved.data, dir="/elsewhere")))


def test_a_run_may_resume_in_less_memory_but_not_in_another_precision(tmp_path):
    run_directory.claim(tmp_path, Experiment())
    (tmp_path / run_directory.CHECKPOINTS / "00000100").mkdir(parents=True)
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


def test_an_unwritable_place_is_reported_in_one_line(tmp_path):
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


def test_environment_holds_what_numbers_depend_on():
    environment = run_directory.environment()
    assert environment["versions"]["jax"]
    assert environment["devices"]
    json.dumps(environment)


def test_a_disk_too_full_for_the_lock_is_reported_with_its_path(tmp_path):
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


DAMAGED = ["", "{", "[" * 100_000, "9" * 5000, "null", '"text"', "\x00"]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_reported_in_one_line_with_what_to_do(tmp_path, content):
    for name, read in (
        (run_directory.SUMMARY, run_directory.read_summary),
        (run_directory.LABELS, run_directory.read_labels),
        (run_directory.ENVIRONMENT, run_directory.read_environment),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(RunError, match=f"{name} is damaged.*: (delete|restore) it"):
            read(tmp_path)
    assert run_directory.starts(tmp_path, "runs/none") == []


@pytest.mark.parametrize("noted", [[], 3, {"written": "runs/none"}, {"written": "runs/none", "path": 1}])
def test_a_damaged_note_of_the_start_is_ignored(tmp_path, noted):
    (tmp_path / run_directory.ENVIRONMENT).write_text(json.dumps({"train.start_from": noted}))
    assert run_directory.starts(tmp_path, "runs/none") == []
