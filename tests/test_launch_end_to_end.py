"""`python launch.py` as a person types it: train, generate and evaluate in a temporary directory."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests.doc_pages import inside
from zerotollm.cli import main

ROOT = Path(__file__).parent.parent
TINY = [
    "--tokenizer.kind=char",
    "--data.context=16",
    "--data.batch-size=4",
    "--model.num-layers=1",
    "--model.width=16",
    "--model.num-heads=2",
    "--train.steps=6",
    "--sample.max-tokens=5",
]


def launch(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a process, with a user's default compilation cache instead of that of the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["ZEROTOLLM_DATA"] = str(folder / "prepared")
    command = [sys.executable, str(ROOT / "launch.py"), "--run-dir", str(folder / "run"), *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def call(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """Run in this process, which has imported jax: a process of its own takes seconds."""
    out, error = io.StringIO(), io.StringIO()
    environment = mock.patch.dict(os.environ, {"ZEROTOLLM_DATA": str(folder / "prepared")})
    with environment, inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(["--run-dir", str(folder / "run"), *words], ROOT / "experiments")
    return subprocess.CompletedProcess(words, code, out.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("end_to_end")
    draw = random.Random(0)
    words = ["in", "the", "beginning", "was", "word", "light", "shone", "é", "—", "光"]
    text = "\n\n".join(" ".join(draw.choices(words, k=60)) for _ in range(60))
    (folder / "own.txt").write_text(text, encoding="utf-8")
    done = launch("--experiment", "base", "--data.corpus", "own.txt", *TINY, folder=folder)
    return folder, done


def test_train_writes_a_run_and_suggests_commands(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert "bits per byte" in done.stdout
    assert "generate --prompt" in done.stdout
    assert json.loads((folder / "run" / "summary.json").read_text())["steps"] == 6
    assert any((folder / "prepared" / "compiled").iterdir()), "the next process will compile all again"


def test_a_finished_run_is_reported(trained):
    folder, _ = trained
    again = call("--experiment", "base", "--data.corpus", "own.txt", *TINY, folder=folder)
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout


def test_generate_needs_no_overrides_and_is_the_same_for_the_same_seed(trained):
    folder, _ = trained
    words = ("--experiment", "base", "generate", "--prompt", "in the", "--max-tokens", "40", "--seed", "3")
    first, second = (run(*words, folder=folder) for run in (launch, call))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("in the")
    assert len(first.stdout) > len("in the\n")
    assert first.stdout == second.stdout


def test_a_prompt_longer_than_the_context_is_refused_in_one_line(trained):
    folder, _ = trained
    done = call("generate", "--prompt", "in the beginning " * 9, folder=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "context" in done.stderr


def test_evaluate_agrees_with_training(trained):
    folder, _ = trained
    done = launch("evaluate", folder=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "run" / "evaluation-validation.json").read_text())
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert result["bpb"] == pytest.approx(summary["best_validation_bpb"], rel=1e-6)
    assert f"{result['bpb']:.4f}" in done.stdout
    assert call("evaluate", "--split", "test", folder=folder).returncode == 0


def test_another_text_is_evaluated_with_the_tokenizer_of_the_run(trained):
    folder, _ = trained
    call("evaluate", folder=folder)
    written = (folder / "run" / "evaluation-validation.json").read_text()
    copied = (folder / "own.txt").read_text(encoding="utf-8")
    (folder / "other.txt").write_text(copied, encoding="utf-8")
    (folder / "strange.txt").write_text("Zyx qwv. " * 2000, encoding="utf-8")
    same, strange, missing = (
        call("evaluate", "--corpus", name, folder=folder) for name in ("other.txt", "strange.txt", "no.txt")
    )
    bpb = f"{json.loads(written)['bpb']:.4f}, over"
    assert bpb in same.stdout
    assert "validation of strange.txt" in strange.stdout
    assert bpb not in strange.stdout
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert (folder / "run" / "evaluation-validation.json").read_text() == written


def test_another_configuration_is_refused_and_named(trained):
    folder, _ = trained
    words = ("--experiment", "base", "--data.corpus", "own.txt", *TINY, "--model.width", "32")
    done = call(*words, folder=folder)
    assert done.returncode == 2
    assert "model.width" in done.stderr
    assert done.stderr.count("\n") == 1


def test_evaluate_refuses_a_text_that_changed(trained):
    folder, _ = trained
    text = (folder / "own.txt").read_text(encoding="utf-8")
    try:
        (folder / "own.txt").write_text(text + "\n\nZYX " * 100, encoding="utf-8")
        done = call("evaluate", folder=folder)
    finally:
        (folder / "own.txt").write_text(text, encoding="utf-8")
    assert done.returncode == 1
    assert "has changed" in done.stderr
    assert done.stderr.count("\n") == 1
