"""The command line: accepted and refused words, without training."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from zerotollm import __version__, catalog, run_directory
from zerotollm.actions import ACTIONS
from zerotollm.actions.config import AblateOptions, EvaluateOptions, GenerateOptions
from zerotollm.catalog import GROUPS
from zerotollm.cli import VALUES, Command, main, split
from zerotollm.errors import RunError
from zerotollm.experiment import Experiment, differences, to_json
from zerotollm.fields import field_types
from zerotollm.host.stop_signals import StoppedError
from zerotollm.shell import option
from zerotollm.suggest import NO_OPTION, SYNONYMS
from zerotollm.usage import MOST_CHANGED

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"


@pytest.fixture
def calls(monkeypatch) -> list:
    """Replace every action by one that records (action, experiment, run directory, options)."""
    noted = []
    for name in ACTIONS:
        module = name.replace("-", "_")
        note = lambda *arguments, name=name: noted.append((name, *arguments))  # noqa: E731
        monkeypatch.setitem(sys.modules, f"zerotollm.actions.{module}", SimpleNamespace(**{module: note}))
    return noted


@pytest.fixture
def base() -> Experiment:
    from experiments.base import experiment

    return experiment()


def launch(*words: str) -> int:
    return main(words, EXPERIMENTS)


def sampling(experiment: Experiment, **changes: object) -> GenerateOptions:
    return replace(GenerateOptions(**asdict(experiment.sample)), **changes)


# --- accepted


def test_training_is_the_default_action(calls, base):
    assert launch("--experiment", "base") == 0
    assert calls == [("train", base, Path("runs/base"))]


@pytest.mark.parametrize("name", ["ablations", "previous_token_heads", "vaswani_table3"])
def test_an_experiment_with_variants_is_ablated(name, calls):
    python, program, *words = shlex.split(catalog.describe(EXPERIMENTS, name).command)
    assert (python, program) == ("python", "launch.py")
    assert launch(*words) == 0
    assert calls[0][0] == "ablate"


def test_an_experiment_with_a_ladder_is_scaled(calls):
    from experiments import scaling

    assert launch("--experiment", "scaling") == 0
    assert launch("--experiment", "scaling", "train") == 0
    scaled, trained = calls
    experiment = scaling.experiment()
    assert scaled == ("scale", experiment, Path("runs/scaling"), scaling.ladder, scaling.next_size)
    assert trained == ("train", experiment, Path("runs/scaling"))


def test_overrides_are_typed_and_reach_the_action(calls, base):
    line = "--experiment base --train.steps 200 --model.num-layers=2 --model.tie-embeddings True --model.norm layer"
    assert launch(*line.split(), "--optimizer.clip_norm", "1", "--run-dir", "elsewhere") == 0
    [(action, experiment, run_dir)] = calls
    assert (action, run_dir) == ("train", Path("elsewhere"))
    assert {name: new for name, _, new in differences(base, experiment)} == {
        "train.steps": 200,
        "model.num_layers": 2,
        "model.tie_embeddings": True,
        "model.norm": "layer",
        "optimizer.clip_norm": 1.0,
    }


def test_the_name_determines_the_run_directory(calls):
    launch("--experiment", "base", "--name", "mine")
    assert calls[0][2] == Path("runs/mine")


def test_order_does_not_matter():
    words = ["--experiment=base", "--prompt=In the beginning", "generate", "--debug", "--run-dir=x"]
    expected = Command(frozenset({"debug"}), "base", "x", "generate", (("prompt", "In the beginning"),))
    assert split(words) == split(reversed(words)) == expected


def test_a_value_may_look_like_an_option():
    assert split(["--prompt=--experiment=x", "generate"]).options == (("prompt", "--experiment=x"),)
    assert split(["--train.steps", "-5"]).options == (("train.steps", "-5"),)


def test_options_of_an_action(calls, tmp_path, base):
    (tmp_path / "config.json").write_text(to_json(base))
    where = ("--experiment", "base", "--run-dir", str(tmp_path))
    assert launch(*where, "generate", "--prompt", "In the beginning", "--top-k", "5") == 0
    assert launch(*where, "evaluate", "--split", "test") == 0
    assert launch(*where, "bench-data") == 0
    assert calls == [
        ("generate", base, tmp_path, sampling(base, prompt="In the beginning", top_k=5)),
        ("evaluate", base, tmp_path, EvaluateOptions(split="test")),
        ("bench-data", base, tmp_path),
    ]


def test_ablating_is_the_default_of_an_experiment_with_variants(calls):
    line = "--experiment ablations --only position,norm relu2 --seeds 2 --train.steps 70 --budget tiny"
    assert launch(*line.split()) == 0
    assert launch(*line.replace(" --seeds", " ablate --seeds").split()) == 0
    assert calls[0] == calls[1]
    [(action, suite, run_dir, options), _] = calls
    assert (action, run_dir) == ("ablate", Path("runs/ablations"))
    assert options == AblateOptions(only="position,norm relu2", seeds=2, budget="tiny")
    assert (suite.base.train.steps, suite.base.model.width) == (70, 64)  # the override comes after the budget
    assert {variant.experiment.train.steps for variant in suite.variants} == {70}
    assert {variant.group for variant in suite.variants} == {"position", "norm", "feed-forward"}
    assert launch("--experiment", "ablations", "train") == 0
    assert launch("--experiment", "ablations", "tabulate", "--run-dir", "here") == 0
    assert [call[0] for call in calls[2:]] == ["train", "tabulate"]


def test_variants_without_budgets_run_in_full(calls):
    assert launch("--experiment", "finetune_chat", "ablate", "--train.steps", "70") == 0
    assert launch("--experiment", "finetune_chat") == 0
    [(action, suite, run_dir, options), (default, *_)] = calls
    assert (action, run_dir, default) == ("ablate", Path("runs/finetune_chat"), "train")
    assert options == AblateOptions(budget="full")
    assert suite.base.train.steps == 70


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_a_file_that_says_what_it_does(action):
    path = ROOT / "zerotollm" / "actions" / f"{action.replace('-', '_')}.py"
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).startswith(f"{action}: ")


# --- a run directory has its own experiment


def test_generate_takes_the_experiment_from_the_run_directory(calls, tmp_path, base):
    trained = replace(base, train=replace(base.train, steps=5), data=replace(base.data, corpus="own.txt"))
    (tmp_path / "config.json").write_text(to_json(trained))
    assert launch("--run-dir", str(tmp_path), "generate") == 0
    assert launch("--experiment", "base", "--run-dir", str(tmp_path), "generate", "--train.steps", "5") == 0
    assert [call[1] for call in calls] == [trained, trained]
    assert launch("--run-dir", str(tmp_path), "generate", "--sample.top-k", "9") == 0
    assert calls[-1][3].top_k == 9


def test_overrides_cannot_change_what_was_trained(calls, tmp_path, base, capsys):
    (tmp_path / "config.json").write_text(to_json(base))
    assert launch("--run-dir", str(tmp_path), "generate", "--model.width", "512") == 2
    assert "was trained with model.width 192, not 512" in capsys.readouterr().err
    assert not calls


def test_a_run_is_evaluated_on_other_test_files(calls, tmp_path, base, capsys):
    named = replace(base.data, corpus="a.tsv", validation="b.tsv", test="c.tsv")
    model = replace(base.model, architecture="encoder-decoder", previous_token_heads=0)
    (tmp_path / "config.json").write_text(to_json(replace(base, data=named, model=model)))
    assert launch("--run-dir", str(tmp_path), "evaluate", "--data.test", "d.tsv") == 0
    assert calls[-1][1].data == replace(named, test="d.tsv")
    assert launch("--run-dir", str(tmp_path), "evaluate", "--data.test-fraction", "0.2") == 2
    assert "was trained with data.test_fraction 0.05, not 0.2" in capsys.readouterr().err


def test_a_damaged_config_is_refused(calls, tmp_path, base, capsys):
    (tmp_path / "config.json").write_bytes(b"\xff\x00 no text")
    assert launch("--run-dir", str(tmp_path), "generate") == 2
    assert "config.json" in capsys.readouterr().err


# --- short forms


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("base", "--experiment base"),
        ("base train", "--experiment base train"),
        ("train base", "--experiment base train"),
        ("base --train.steps 9 plan", "--experiment base plan --train.steps 9"),
        ("--experiment= base", "--experiment base"),
        ("base --train.steps 1e3", "base --train.steps 1000"),
        ("base --train.steps 1k", "base --train.steps 1000"),
        ("base --train.steps 1.5K --data.batch-size 4", "base --train.steps 1500 --data.batch-size 4"),
        ("base --train.steps 2.5e3", "base --train.steps 2500"),
        ("base --train.steps 1,000", "base --train.steps 1_000"),
        ("base --train.steps 2M", "base --train.steps 2000000"),
        ("base --init-from=~/x --run-dir=~/y", "base --init-from=HOME/x --run-dir=HOME/y"),
        (
            "base report --run-dir=~/x --with=~/x,~/y ~/z",
            "base report --run-dir HOME/x --with HOME/x,HOME/y HOME/z",
        ),
    ],
)
def test_short_forms(short, long, calls, tmp_path, base, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(to_json(base))
    assert launch(*short.split()) == 0
    assert launch(*long.replace("HOME", str(tmp_path)).split()) == 0
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["generate", "In the beginning"], {"prompt": "In the beginning"}),
        (["generate", "in/the/beginning"], {"prompt": "in/the/beginning"}),
        (["generate", "base"], {"prompt": "base"}),
        (["generate", "--checkpoint", "last"], {"checkpoint": "last"}),
        (["generate", "--max-tokens", "1k"], {"max_tokens": 1000}),
    ],
)
def test_generate_takes_a_text(words, options, calls, tmp_path, base):
    (tmp_path / "config.json").write_text(to_json(base))
    assert launch(*words, "--run-dir", str(tmp_path)) == 0
    assert calls == [("generate", base, tmp_path, sampling(base, **options))]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("list", "  base "),
        ("help", "usage: python launch.py EXPERIMENT"),
        ("help base", "Expected: 1.1775, 1.1790 and 1.1769 bits per byte"),
        ("help generate", "--temperature FLOAT"),
        ("train --help", "--train.steps INT"),
        ("base train --help", "--train.steps INT"),
        ("generate --help", "--checkpoint {best,last,average}"),
        ("--help all", "--optimizer.beta2 FLOAT"),
        ("help all", "--optimizer.beta2 FLOAT"),
        ("base help all", "--optimizer.beta2 FLOAT"),
        ("--version", "ZeroToLLM 0.2.0"),
        ("version", "ZeroToLLM 0.2.0"),
    ],
)
def test_information(words, says, capsys):
    if words == "base help all":  # `help` is a switch only as the first word
        words = "base --help all"
    assert launch(*words.split()) == 0
    out, error = capsys.readouterr()
    assert says in out
    assert error == ""


def test_the_examples_of_help_run_one_after_the_other(capsys, monkeypatch, tmp_path):
    """Training claims its run directory and writes a checkpoint, which other actions need."""
    monkeypatch.chdir(tmp_path)
    done = []

    def trained(experiment, run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        run_directory.claim(run_dir, experiment)
        (run_dir / run_directory.CHECKPOINTS / "00000001").mkdir(parents=True)
        done.append("train")

    def read(name):
        return SimpleNamespace(**{name: lambda experiment, run_dir, *_: done.append(name)})

    monkeypatch.setitem(sys.modules, "zerotollm.actions.train", SimpleNamespace(train=trained))
    for name in ("generate", "explain"):
        monkeypatch.setitem(sys.modules, f"zerotollm.actions.{name}", read(name))
    launch("--help")
    examples = capsys.readouterr().out.partition("for example:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 4
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["python", "launch.py"]
        assert launch(*words[2:]) == 0, capsys.readouterr().err
    assert done == ["train", "generate", "explain", "train"]


def test_help_shows_twenty_fields(capsys):
    assert len(MOST_CHANGED) == len(set(MOST_CHANGED)) == 20
    for words in ("--help", "base --help", "train --help"):
        assert launch(*words.split()) == 0
        out = capsys.readouterr().out
        fields = out.partition("\nfields that people change")[2]
        shown = {line.split()[0] for line in fields.splitlines() if line.startswith("  --")}
        assert shown == {option(name) for name in MOST_CHANGED} - {"--train.start-from"} | {"--init-from"}


def test_list_is_one_line_an_experiment_by_group(capsys):
    assert launch("list") == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == list(GROUPS)
    names = [line.split()[0] for line in lines if line.startswith(" ")]
    assert sorted(names) == catalog.names(EXPERIMENTS)
    assert names[0] == "base"


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]


def test_synonyms_are_no_fields_and_mean_fields():
    fields = [*field_types(Experiment), *VALUES]
    own = {name.rpartition(".")[2] for name in fields}
    assert SYNONYMS.keys() <= set(fields)
    every = [word for words in (*SYNONYMS.values(), *NO_OPTION) for word in words.split()]
    assert [word for word in every if word in own - {"dir"}] == []
    assert len(every) == len(set(every))


@pytest.mark.parametrize("name", ["num-experts", "num-experts-per-token", "moe", "mixture", "zzz"])
def test_an_option_without_a_near_one_gets_no_suggestion(name, calls, capsys):
    assert launch("base", f"--model.{name}", "4") == 2
    assert "did you mean" not in capsys.readouterr().err


# --- refused: one line on stderr with what is wrong, what is allowed and the nearest match


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--experiment bse", ["unknown experiment 'bse'", "shakespeare_char", "did you mean base?"]),
        ("--experiment base trian", ["unknown action 'trian'", "evaluate", "did you mean train?"]),
        ("--experiment base --train.stpes 3", ["--train.stpes", "did you mean --train.steps?"]),
        ("--experiment base --steps 3", ["--steps", "did you mean --train.steps?"]),
        ("--experiment base --prompt hi", ["--prompt", "did you mean --sample.prompt?"]),
        ("--exprimnt base", ["--exprimnt", "did you mean --experiment?"]),
        ("--experiment base --model.norm rmss", ["'rmss'", "one of rms, layer", "did you mean rms?"]),
        ("--experiment base --model.qk-norm false", ["'false'", "True or False", "did you mean False?"]),
        ("--experiment base --train.steps two", ["--train.steps", "'two'", "a whole number"]),
        ("--experiment base --train.steps 2.5", ["'2.5'", "a whole number"]),
        ("--experiment base --model.dropout x", ["'x'", "a number"]),
        ("--experiment base --train.steps", ["--train.steps", "needs a value"]),
        ("--experiment base --train.steps --debugg", ["--train.steps", "needs a value"]),
        ("--experiment base --model.num-heads 5", ["num_heads 5", "take 4 heads"]),
        ("--experiment base scale", ["base.py has no function ladder()"]),
        ("--experiment base --data.context 0", ["data.context is 0", "at least 1"]),
        ("--experiment base evaluate --split tset --run-dir RUN", ["'tset'", "validation, test"]),
        ("--experiment base generate --top-p 2 --split test", ["--split"]),
        ("--experiment base generate --prompt In the beginning", ["'the'", "quotes"]),
        ("--experiment base generate --run-dir nowhere", ["nowhere", "train first"]),
        ("--experiment shakespeare_char", ["shakespeare_char needs a text", "--data.corpus input.txt"]),
        ("--experiment bible_style", ["bible_style needs pairs", "--data.corpus source.txt:target.txt"]),
        ("--train.steps 3", ["--experiment NAME", "base"]),
        ("generate", ["--experiment NAME"]),
        ("-x 3", ["-x"]),
        ("--experiment base ablate", ["base.py has no function variants()", "one of ablations"]),
        ("--experiment finetune_chat ablate --budget tiny", ["finetune_chat has no budgets"]),
        ("--experiment ablations --only posision", ["'posision'", "did you mean position?"]),
        ("--experiment ablations --only", ["--only needs a value"]),
        ("--experiment ablations --only norm trian", ["'trian' is neither a variant"]),
        ("--experiment ablations --budget huge", ["'huge'", "one of tiny, small, full"]),
        ("bse", ["unknown action or experiment 'bse'", "did you mean base?"]),
        ("base trian", ["unknown action 'trian'", "did you mean train?"]),
        ("base --debugg", ["unknown option --debugg", "did you mean --debug?"]),
        ("base --verbose", ["unknown option --verbose", "--debug shows"]),
        ("base --fp16 --lr 1e-3", ["unknown option --fp16", "did you mean --compute.precision?"]),
        ("base --experiment", ["--experiment needs a value"]),
        ("base plan --fit", ["--fit needs a value: --fit True"]),
        ("base --lr 3e-4", ["did you mean --optimizer.learning-rate?"]),
        ("base --optimizer.lr 3e-4", ["did you mean --optimizer.learning-rate?"]),
        ("base --seed 1", ["did you mean --train.seed?"]),
        ("base --device cuda", ["JAX_PLATFORMS=cpu", "--train.mesh"]),
        ("base --epochs 3", ["--train.steps"]),
        ("base --batch 8", ["did you mean --data.batch-size?"]),
        ("base --batch_size 8", ["did you mean --data.batch-size?"]),
        ("base --block_size 8", ["did you mean --data.context?"]),
        ("base --model.d_model 64", ["did you mean --model.width?"]),
        ("base --n_embd 64", ["did you mean --model.width?"]),
        ("base --max_iters 9", ["did you mean --train.steps?"]),
        ("base --out_dir x", ["did you mean --run-dir?"]),
        ("base --config base", ["did you mean --experiment?"]),
        ("base --resume x", ["the same command again resumes"]),
        ("base --smaple.seed 1", ["did you mean --sample.seed?"]),
        ("base --model.stpes 1", ["did you mean --train.steps?"]),
        ("base generate --max-new-tokens 5 --run-dir RUN", ["did you mean --max-tokens?"]),
        ("base generate --temp 1 --run-dir RUN", ["did you mean --temperature?"]),
        ("serve runs/base", ["unexpected word 'runs/base'", "did you mean --run-dir runs/base?"]),
        (
            "runs/base serve",
            ["unknown action or experiment 'runs/base'", "did you mean --run-dir runs/base?"],
        ),
        ("generate RUN", ["is a run directory", "did you mean --run-dir"]),
        ("base generate a b", ["'b'", "quotes"]),
        (f"base generate {'a' * 300} b", ["'b'", "quotes"]),  # longer than the name of a file may be
        (f"base generate b {'a' * 300}", ["quotes"]),
        ("base shakespeare_char", ["unknown action 'shakespeare_char'"]),
        ("base generate --checkpoint newest --run-dir RUN", ["one of best, last, average"]),
        ("base generate --run-dir nowhere", ["python launch.py base --run-dir nowhere"]),
        ("generate --run-dir nowhere", ["python launch.py EXPERIMENT --run-dir nowhere"]),
        (
            "shakespeare_char chat --run-dir nowhere",
            ["shakespeare_char --run-dir nowhere --data.corpus FILE"],
        ),
        ("base --train.steps 1.0005k", ["'1.0005k'", "a whole number"]),
        ("base --train.steps 1e", ["a whole number"]),
        ("finetune_lora", ["add --init-from RUN", "--init-from runs/base"]),
        ("base --train.lora-rank 8", ["--init-from runs/base"]),
    ],
)
def test_wrong_usage(words, says, calls, capsys, tmp_path, base):
    (tmp_path / "config.json").write_text(to_json(base))
    assert launch(*words.replace("RUN", str(tmp_path)).split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in says:
        assert word in error
    assert not calls


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (RunError("the loss\nis not finite"), 1, "error: the loss is not finite"),
        (
            OSError(28, "No space left on device", "runs/base/x"),
            1,
            "error: runs/base/x: No space left on device",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (StoppedError("stopped at step 5 of 9", signal.SIGINT), 130, "stopped at step 5 of 9"),
    ],
)
def test_failures_have_one_line_and_an_exit_code(raised, code, says, monkeypatch, capsys):
    def fail(*_):
        raise raised

    monkeypatch.setitem(sys.modules, "zerotollm.actions.train", SimpleNamespace(train=fail))
    assert launch("--experiment", "base") == code
    assert capsys.readouterr().err == says + "\n"
    with pytest.raises(type(raised)):
        launch("--experiment", "base", "--debug")


# --- a user's experiments


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "my_experiments"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_new_file_is_a_new_experiment(own_folder, calls, capsys):
    (own_folder / "tiny.py").write_text(
        '"""Question: how small can it be?\n\nTime: 1 minute\n"""\n'
        "from zerotollm.experiment import Experiment\n"
        'def experiment():\n    return Experiment(name="tiny")\n'
    )
    (own_folder / "broken.py").write_text("raise RuntimeError('only the experiment asked for is run')")
    assert main(["--list"], own_folder) == 0
    listed = capsys.readouterr().out
    assert "how small can it be?" in listed
    assert "broken" in listed
    assert main(["--experiment", "tiny"], own_folder) == 0
    assert calls == [("train", Experiment(name="tiny"), Path("runs/tiny"))]


def test_a_file_without_an_experiment_is_refused(own_folder, capsys):
    (own_folder / "empty.py").write_text("")
    (own_folder / "torn.py").write_text("def experiment(:")
    for name, says in (("empty", "needs a function"), ("torn", "is not Python")):
        assert main(["--experiment", name], own_folder) == 2
        assert says in capsys.readouterr().err


def test_a_folder_of_ones_own_comes_before_the_built_in_one(tmp_path, calls, capsys, monkeypatch):
    """With --experiments, and as `experiments` in the working directory; its files may import built-in ones."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = import_module("experiments")
    monkeypatch.setattr(package, "__path__", [*package.__path__])
    file = "from experiments.base import experiment as base\n\n\ndef experiment():\n    return base()\n"
    for place in ("ideas", "here/experiments"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"mine_{place[:4]}.py").write_text(file)
    monkeypatch.chdir(tmp_path / "here")
    assert launch("mine_here") == launch("mine_idea", f"--experiments={tmp_path / 'ideas'}") == 0
    assert launch("base", "--experiments", "../ideas") == 0
    assert calls == 3 * [("train", catalog.load(EXPERIMENTS, "base"), Path("runs/base"))]
    assert launch("--list") == 0
    assert "mine_here" in capsys.readouterr().out
    assert launch("mine_idea") == 2
    assert "unknown action or experiment 'mine_idea'" in capsys.readouterr().err
    (tmp_path / "a-b").mkdir()
    for folder, says in (
        ("base", "is no folder: name a folder of experiment files; did you mean --experiment base?"),
        (f"{tmp_path}/a-b", "Python cannot import from a folder of this name: rename it"),
    ):
        assert launch("base", "--experiments", folder) == 2
        assert says in capsys.readouterr().err


# --- help


def test_help_all_shows_every_field_with_its_type_and_value(capsys):
    assert launch("--experiment", "base", "--help", "all") == 0
    text = capsys.readouterr().out
    for shown in ("--data.corpus STR", "--train.steps INT", "--model.qk-norm {True,False}", "rms,layer"):
        assert shown in text
    assert "bible-web" in text
    assert "tokens in a window" in text


def test_help_of_an_action_shows_its_options(capsys):
    assert launch("--experiment", "base", "generate", "--help") == 0
    assert "--temperature FLOAT" in capsys.readouterr().out


def test_usage_lists_the_actions(capsys):
    assert launch() == 0
    text = capsys.readouterr().out
    for name, action in ACTIONS.items():
        assert name in text
        assert action.summary in text


def test_a_reader_may_stop_early():
    command = f"{sys.executable} launch.py --experiment base --help | head -n 1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""


def test_help_answers_in_a_second():
    fastest = min(timed("--help") for _ in range(3))
    assert fastest < 1


def timed(*words: str) -> float:
    """Return the seconds of processor time, without that of other programs."""
    begin = os.times()
    subprocess.run([sys.executable, "launch.py", *words], cwd=ROOT, check=True, capture_output=True)
    end = os.times()
    return end.children_user + end.children_system - begin.children_user - begin.children_system


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["base", "--list=3"], "error: --list takes no value: write it without '=3'"),
        (["base", "--help="], "error: --help takes no value: write it without '='"),
        (["base", "-x"], "unknown option -x:"),
        (["base", "--run-dir", ""], "--run-dir needs a value"),
        (["generate", "--run-dir="], "--run-dir needs a value"),
    ],
)
def test_a_superfluous_or_missing_value_is_reported(words, says, calls, capsys):
    assert launch(*words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", [[""], ["base", "base"]])
def test_no_suggestion_is_what_was_typed(words, calls, capsys):
    assert launch(*words) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize(
    "words", ["plan --hours", "plan --memory-gb", "bench --seconds", "train --sample.top-p"]
)
def test_an_option_that_is_no_finite_number_is_refused(words, value, calls, capsys):
    assert launch("base", *words.split(), value) == 2
    assert f"{words.split()[1]} is '{value}', and must be a number" in capsys.readouterr().err
