"""An experiment's file brings functions of its own: they are used everywhere, and a run keeps to the code it had."""

import importlib
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.functions import init_params
from zerotollm import catalog
from zerotollm.cli import main, override
from zerotollm.components import model_of, training_of
from zerotollm.model.config import resolve
from zerotollm.own_code import OwnCode, own_code
from zerotollm.run import load
from zerotollm.session.timed_jax import jax_side
from zerotollm.session.train_in_memory import compile_programs, fit

TEXT = "\n\n".join(f"the {n} king sees a stone in the morning. a bird hears the rain." for n in range(200))
TINY = [
    *("--data.corpus", "text.txt", "--data.context", "16", "--data.batch-size", "4"),
    *(
        "--tokenizer.vocab-size",
        "270",
        "--model.width",
        "8",
        "--model.num-heads",
        "2",
        "--model.num-layers",
        "1",
    ),
    *("--train.steps", "4", "--train.checkpoint-every", "2", "--train.eval-every", "2"),
]
EXPERIMENT = '''"""Question: a test"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

from zerotollm.experiment import Experiment

CALLS = []


def experiment() -> Experiment:
    return replace(Experiment(), name="own")


def optimizer(experiment):
    """A comment."""
    CALLS.append(experiment.train.steps)
    return optax.sgd(0.0)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An importable folder of experiments, of which one brings an optimizer that learns nothing."""
    (tmp_path / "own_experiments").mkdir()
    (tmp_path / "own_experiments" / "__init__.py").write_text("")
    (tmp_path / "own_experiments" / "idle.py").write_text(EXPERIMENT)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROTOLLM_DATA", str(tmp_path / "data"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path / "own_experiments"
    for name in [name for name in sys.modules if name.startswith("own_experiments")]:
        del sys.modules[name]


def change(folder: Path, old: str, new: str) -> None:
    path = folder / "idle.py"
    path.write_text(path.read_text().replace(old, new))


def test_only_the_functions_that_replace_built_in_ones_count(folder):
    code = catalog.load(folder, "idle").code
    assert (code.module, code.functions) == ("own_experiments.idle", "optimizer")
    change(folder, '"""A comment."""', '"""Another one."""  # and one more')
    change(folder, 'name="own"', 'name="other"')
    path = folder / "idle.py"
    for function in ("variants(base)", "recipe_for_pairs(size)"):  # what they return is compared itself
        path.write_text(f"{path.read_text()}\n\ndef {function}:\n    return ()\n")
    assert own_code("own_experiments.idle", folder / "idle.py") == code
    change(folder, "optax.sgd(0.0)", "optax.sgd(0.1)")
    assert own_code("own_experiments.idle", folder / "idle.py").sha256 != code.sha256
    (folder / "plain.py").write_text("def experiment():\n    return 1\n")
    assert own_code("own_experiments.plain", folder / "plain.py") == OwnCode()


def test_a_run_trains_with_it_and_refuses_other_code(folder, capsys):
    assert main(["--experiment", "idle", "--run-dir", "run", *TINY], folder) == 0
    run = load("run")
    assert run.experiment.code.functions == "optimizer"
    fresh = init_params(run.model_config, run.experiment.train.seed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), run.params, fresh)
    capsys.readouterr()
    assert main(["--experiment", "idle", "--run-dir", "run", *TINY], folder) == 0
    assert "is finished" in capsys.readouterr().out
    change(folder, "optax.sgd(0.0)", "optax.sgd(0.1)")
    assert main(["--experiment", "idle", "--run-dir", "run", *TINY], folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own_experiments/idle.py, whose optimizer()" in line
    assert "has changed" in line
    with pytest.raises(Exception, match="has changed since this run was trained with its optimizer"):
        run.experiment.code.function("optimizer")
    (folder / "idle.py").unlink()
    with pytest.raises(Exception, match="is not found: bring it back, or name its folder with --experiments"):
        run.experiment.code.function("optimizer")


def test_a_run_finds_its_code_in_the_working_directory(folder, tmp_path, monkeypatch):
    """No import has opened the folder, and an installed package of the same name lacks the file."""
    code = own_code("own_experiments.idle", folder / "idle.py")
    (tmp_path / "site" / "own_experiments").mkdir(parents=True)
    (tmp_path / "site" / "own_experiments" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *(p for p in sys.path if p != str(tmp_path))])
    assert code.function("optimizer").__module__ == "own_experiments.idle"
    monkeypatch.chdir(tmp_path / "site")
    with pytest.raises(Exception, match="has changed"):
        replace(code, sha256="").function("optimizer")


def test_plan_uses_it(folder):
    assert main(["--experiment", "idle", "plan", "--device", "cpu", *TINY], folder) == 0
    assert importlib.import_module("own_experiments.idle").CALLS


def test_every_compiled_training_uses_it(folder):
    """That of `ablate` and `scale`, in memory, and that of `bench`."""
    pairs = [(name[2:].replace("-", "_"), value) for name, value in zip(TINY[::2], TINY[1::2], strict=True)]
    experiment = override(catalog.load(folder, "idle"), pairs)
    programs = compile_programs(experiment)
    (fitted,) = fit(programs, [0])
    jax.tree.map(np.testing.assert_array_equal, fitted.params, programs.init(np.uint32(0)).params)
    calls = importlib.import_module("own_experiments.idle").CALLS
    before = len(calls)
    jax_side(experiment, decodes=False)
    assert len(calls) > before


@pytest.mark.parametrize("name", ["own_attention", "own_objective", "own_optimizer"])
def test_the_examples_replace_what_they_say(name):
    experiment = catalog.load(Path(__file__).parents[1] / "experiments", name)
    (function,) = experiment.code.functions.split()
    assert name.endswith(function) or (name, function) == ("own_attention", "model")
    config = resolve(experiment.model, vocab_size=300, context=experiment.data.context)
    experiment = replace(experiment, model=config)
    state = jax.eval_shape(training_of(experiment).init, 0, None)
    built_in = replace(experiment, code=OwnCode())
    plain = jax.eval_shape(training_of(built_in).init, 0, None)
    same = (
        jax.tree.structure(state.params) == jax.tree.structure(plain.params),
        jax.tree.structure(state.opt_state) == jax.tree.structure(plain.opt_state),
    )
    assert same == {"model": (False, False), "optimizer": (True, False), "objective": (True, True)}[function]
    assert (model_of(experiment) == model_of(built_in)) == (function != "model")


def test_a_model_of_its_own_writes_and_is_resumed(tmp_path, monkeypatch, capsys):
    """The example of another attention, trained, stopped, resumed, asked to write, and not explained or exported."""
    experiments = Path(__file__).parents[1] / "experiments"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROTOLLM_DATA", str(tmp_path / "data"))
    Path("text.txt").write_text(TEXT)
    words = ["--experiment", "own_attention", *TINY]
    assert main([*words, "--run-dir", "run"], experiments) == 0
    assert "gate" in load("run").params["layer_0"]["attention"]
    before = load("run").metrics()[-1]["validation_loss"]
    shutil.rmtree("run/checkpoints/00000004")
    Path("run/summary.json").unlink()
    assert main(["--run-dir", "run"], experiments) == 0
    assert load("run").metrics()[-1]["validation_loss"] == before
    capsys.readouterr()
    assert (
        main(["--run-dir", "run", "generate", "--prompt", "the king", "--max-tokens", "5"], experiments) == 0
    )
    assert capsys.readouterr().out.startswith("the king")
    for action in (["explain", "the king"], ["export", "--out", "out"]):
        assert main(["--run-dir", "run", *action], experiments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "experiments.own_attention" in line
