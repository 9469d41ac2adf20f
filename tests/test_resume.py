"""kill -9 at any moment, and again, and again: the run ends with the same bits as one that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from zerotollm.training import checkpoints
from zerotollm.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
STEPS = 120
TIMEOUT = 180

pytestmark = pytest.mark.slow


def command(folder: Path, run_dir: Path) -> list[str]:
    """A small model with dropout that saves all the time, so that a kill often meets a save."""
    fields = {
        "data.corpus": folder / "text.txt",
        "data.dir": folder / "data",
        "data.context": 32,
        "data.batch_size": 8,
        "tokenizer.vocab_size": 300,
        "model.num_layers": 2,
        "model.width": 64,
        "model.num_heads": 2,
        "model.dropout": 0.1,
        "train.steps": STEPS,
        "train.eval_every": 25,
        "train.sample_every": 60,
        "train.checkpoint_every": 4,
        "train.log_every": 7,
        "train.keep": 2,
        "sample.max_tokens": 8,
    }
    launch = [sys.executable, "launch.py", "--experiment", "base", "--run-dir", run_dir]
    return [str(x) for x in launch + [f"--{name}={value}" for name, value in fields.items()]]


def start(folder: Path, run_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        command(folder, run_dir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(folder: Path, run_dir: Path) -> str:
    process = start(folder, run_dir)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, out
    return out


def kill_when(process: subprocess.Popen, moment: Callable[[], bool]) -> bool:
    """kill -9 as soon as the moment has come. False where the process ended before."""
    deadline = time.monotonic() + TIMEOUT
    try:
        while process.poll() is None and not moment():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
    if process.returncode != -signal.SIGKILL:
        assert process.returncode == 0, out
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    draw = random.Random(2)
    words = [line.strip() for line in (ROOT / "LICENSE").read_text().split()]
    paragraphs = [" ".join(draw.choices(words, k=80)) for _ in range(150)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Path:
    finish(folder, folder / "uninterrupted")
    return folder / "uninterrupted"


def assert_same_run(run_dir: Path, expected: Path) -> None:
    def lines(path: Path) -> list[str]:
        return [
            json.dumps({k: v for k, v in line.items() if k != "timing"})
            for line in read_metrics(path / "metrics.jsonl")
        ]

    def arrays(path: Path) -> dict[tuple[int, str], bytes]:
        import orbax.checkpoint as ocp

        found = {}
        for checkpoint in checkpoints.finished(path / "checkpoints"):
            tree = ocp.StandardCheckpointer().restore((checkpoint.path / "state").absolute())
            for name, x in jax.tree_util.tree_leaves_with_path(tree):
                found[checkpoint.step, jax.tree_util.keystr(name)] = np.asarray(x).tobytes()
        return found

    assert lines(run_dir) == lines(expected)
    ours, theirs = arrays(run_dir), arrays(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    for sample in (expected / "samples").iterdir():
        assert (run_dir / "samples" / sample.name).read_bytes() == sample.read_bytes()
    assert sorted(p.name for p in run_dir.iterdir()) == sorted(p.name for p in expected.iterdir())


def test_killed_again_and_again_it_ends_with_the_same_bits(folder, uninterrupted):
    run_dir = folder / "killed"
    seed = int(os.environ.get("ZEROTOLLM_TEST_SEED", time.time_ns() % 2**32))
    print(f"ZEROTOLLM_TEST_SEED={seed} kills at the same moments")  # shown when the test fails
    draw = random.Random(seed)
    directory = run_dir / "checkpoints"

    def after(seconds: float) -> Callable[[], bool]:
        then = time.monotonic() + seconds
        return lambda: time.monotonic() > then

    def saving_after(step: int) -> Callable[[], bool]:
        return lambda: any(int(p.name.split(".")[1]) > step for p in directory.glob(".*.saving"))

    def newest() -> int:
        return max((c.step for c in checkpoints.finished(directory)), default=0)

    def random_moment_after(step: int) -> Callable[[], bool]:
        wait = draw.uniform(0, 0.3)
        reached: list[float] = []

        def moment() -> bool:
            if not reached and newest() > step:
                reached.append(time.monotonic())
            return bool(reached) and time.monotonic() > reached[0] + wait

        return moment

    killed = [
        kill_when(start(folder, run_dir), after(draw.uniform(0, 1.5))),  # importing
        kill_when(start(folder, run_dir), (run_dir / "environment.json").exists),  # compiling
        kill_when(start(folder, run_dir), saving_after(0)),  # in the very first save
        kill_when(start(folder, run_dir), random_moment_after(draw.randrange(0, 20))),
        kill_when(start(folder, run_dir), saving_after(newest() + draw.randrange(1, 15))),
        kill_when(start(folder, run_dir), random_moment_after(newest() + draw.randrange(1, 15))),
        kill_when(start(folder, run_dir), saving_after(newest() + draw.randrange(1, 15))),
    ]
    assert sum(killed) >= 5
    finish(folder, run_dir)
    assert_same_run(run_dir, uninterrupted)


def test_stopped_by_sigterm_it_saves_and_goes_on(folder, uninterrupted):
    run_dir = folder / "stopped"
    process = start(folder, run_dir)
    metrics = run_dir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.001)
    process.terminate()
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, out
    assert out.splitlines()[-1].endswith("the same command resumes it")
    finish(folder, run_dir)
    assert_same_run(run_dir, uninterrupted)


def test_on_a_full_disk_it_stops_with_one_line_and_goes_on_when_there_is_room(folder, uninterrupted):
    disk = folder / "disk"
    disk.mkdir()
    newest = checkpoints.finished(uninterrupted / "checkpoints")[-1]
    size = sum(path.stat().st_size for path in newest.path.rglob("*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        process = start(folder, disk / "run")
        out, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 1, out
        assert "No space left on device" in out.splitlines()[-1]
        assert "Traceback" not in out
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(disk)], check=True)
        assert "resuming after step" in finish(folder, disk / "run")
        assert_same_run(disk / "run", uninterrupted)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_run_again_when_finished_it_says_so_at_once(folder, uninterrupted):
    begun = os.times()
    assert "is finished" in finish(folder, uninterrupted)
    ended = os.times()
    # Processor time: what other programs take does not count.
    assert ended.children_user + ended.children_system - begun.children_user - begun.children_system < 5
