"""Run directories and exported folders of 2026-11-28, before the package was rebuilt, still open and give the same.

`written_before/` holds a decoder (steps 4 and 8 of 8), an encoder-decoder, adapters trained beside the decoder, and the
decoder exported for transformers. `expected.json` is what that version measured and wrote, except for the translation:
that version wrote bytes that are not UTF-8, which are no longer sampled.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import zerotollm
from zerotollm.cli import main
from zerotollm.interop.folder import read_model, read_params

HERE = Path(__file__).parent
BEFORE = HERE / "written_before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A copy of all of it, which is the working directory."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    monkeypatch.setenv("ZEROTOLLM_DATA", str(tmp_path / "data"))


def launch(*words: str) -> int:
    return main([*words, "--debug"], experiments=HERE.parent / "experiments")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_opens_and_writes_the_same(runs, name):
    expected, run = EXPECTED[name], zerotollm.load(name)
    assert (run.step, run.num_parameters) == (expected["step"], expected["num_parameters"])
    assert run.validation_bpb == expected["bpb"]
    if name == "pairs":
        written = run.translate(["the king sees a stone"], beam_size=2, n_best=1)[0][0].text
    else:
        written = run.generate("The king", max_tokens=12, temperature=0.0, top_k=0)
    assert written == expected["written"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_is_measured_the_same(runs, name):
    assert launch("evaluate", "--run-dir", name) == 0
    measured = json.loads(Path(name, "evaluation-validation.json").read_text(encoding="utf-8"))
    assert measured["bpb"] == pytest.approx(EXPECTED[name]["bpb"], rel=1e-5)


def test_a_run_resumes_to_the_same_end(runs):
    then = json.loads(Path("decoder/summary.json").read_text(encoding="utf-8"))
    shutil.rmtree("decoder/checkpoints/00000008")
    Path("decoder/summary.json").unlink()
    assert launch("--run-dir", "decoder") == 0
    now = json.loads(Path("decoder/summary.json").read_text(encoding="utf-8"))
    for name in ("train_loss", "validation_loss", "validation_bpb"):
        assert now[name] == pytest.approx(then[name], rel=1e-5)


def test_an_exported_folder_opens(runs):
    family, _, model = read_model(Path("exported"))
    params = zerotollm.load("decoder").params
    jax.tree.map(np.testing.assert_array_equal, read_params(Path("exported"), family, model), params)
