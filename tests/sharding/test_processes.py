"""Several processes on this machine give the numbers of one process; only the first writes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zerotollm.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
TIMEOUT = 900

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    draw = random.Random(2)
    words = (ROOT / "LICENSE").read_text().split()
    paragraphs = [" ".join(draw.choices(words, k=80)) for _ in range(100)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder


def command(folder: Path, name: str, *changed: str) -> list[str]:
    fields = {
        "data.corpus": folder / "text.txt",
        "data.dir": folder / "data",
        "data.context": 32,
        "data.batch_size": 8,
        "tokenizer.vocab_size": 300,
        "model.num_layers": 1,
        "model.width": 32,
        "model.num_heads": 2,
        "model.dropout": 0.1,
        "train.steps": 50,
        "train.eval_every": 25,
        "train.checkpoint_every": 5,
        "train.log_every": 1,
        "sample.max_tokens": 4,
    }
    words = [sys.executable, "launch.py", "--experiment", "base", "--run-dir", folder / name]
    return [str(word) for word in words + [f"--{key}={value}" for key, value in fields.items()]] + list(
        changed
    )


def start(words: list[str], processes: int = 0) -> subprocess.Popen:
    launcher = [
        sys.executable,
        "-m",
        "zerotollm.sharding.local_launcher",
        "--processes",
        str(processes),
        "--",
    ]
    return subprocess.Popen(
        (launcher if processes else []) + words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def finish(words: list[str], processes: int = 0) -> str:
    process = start(words, processes)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, out
    return out


def numbers(run_dir: Path) -> dict[tuple[int, str], float]:
    return {
        (line["step"], name): value
        for line in read_metrics(run_dir / "metrics.jsonl")
        for name, value in line.items()
        if name in ("loss", "validation_loss")
    }


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    finish(command(folder, "alone"))
    return folder / "alone"


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [(2, []), (4, ["data=2", "fsdp=2"]), (2, ["tensor=2"])],
    ids=["two", "four", "tensor"],
)
def test_several_processes_give_the_numbers_of_one(folder, alone, processes, mesh):
    name = f"{processes}{''.join(mesh)}"
    out = finish(command(folder, name, *(["--train.mesh", *mesh] if mesh else [])), processes)
    assert out.count("worth trying next") == 1, "one process speaks"
    assert numbers(folder / name) == pytest.approx(numbers(alone), rel=1e-5)


def test_after_sigterm_all_save_the_same_step_and_any_number_resumes(folder, alone):
    words = command(folder, "stopped")
    process = start(words, 2)
    deadline = time.monotonic() + TIMEOUT
    while len(numbers(folder / "stopped")) < 10 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, out
    assert "the same command goes on" in out
    assert "going on after step" in finish(words)
    assert numbers(folder / "stopped") == pytest.approx(numbers(alone), rel=1e-5)


def test_different_processes_all_end_with_the_same_line(folder):
    place = ["--distributed", "coordinator=127.0.0.1:39217"]
    processes = [
        start(command(folder, "differ", f"--train.seed={number}", *place, f"process={number}", "of=2"))
        for number in range(2)
    ]
    lines = set()
    for process in processes:
        out, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 2, out
        lines.add(out.splitlines()[-1])
    assert len(lines) == 1
    assert "process 1 has another configuration than process 0" in lines.pop()
    assert not (folder / "differ").exists()
