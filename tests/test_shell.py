"""Every command that is printed runs when it is pasted."""

import ast
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from zerotollm.actions import ACTIONS
from zerotollm.actions.config import PlanOptions
from zerotollm.actions.plan import plan
from zerotollm.cli import split
from zerotollm.experiment import Experiment
from zerotollm.session.summary import commands
from zerotollm.shell import launch, quoted, typed_again

AWKWARD = [
    "runs/base",
    "a b",
    "it's",
    'a "b"',
    "$HOME `x` !y \\z",
    "[old]*?",
    "-x",
    "--x=y",
    "#1",
    "",
    "two\nlines",
    "é光",
    "~/x",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_quoted_text_is_one_word(text):
    assert shlex.split(quoted(text)) == [text]
    done = subprocess.run(["bash", "-c", f"printf '%s.' {quoted(text)}"], capture_output=True, check=True)
    assert done.stdout.decode() == text + "."


@pytest.mark.parametrize("text", [text for text in AWKWARD if text])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder", "label"])
def test_suggested_commands_name_the_run_and_the_prompt(text, kind):
    base = Experiment()
    experiment = replace(
        base,
        name="mine",  # names no file in experiments/
        sample=replace(base.sample, prompt=text),
        model=replace(base.model, architecture="encoder-decoder" if kind == "encoder-decoder" else "decoder"),
        train=replace(base.train, objective="label" if kind == "label" else "likelihood"),
    )
    actions = []
    for _, command in commands(experiment, Path(text)):
        words = shlex.split(command)
        if words[1] == "-i":
            code = ast.parse(words[3])
            assert ast.literal_eval(code.body[1].value.args[0]) == str(Path(text))
            continue
        assert words[:2] == ["python", "launch.py"]
        parsed = split(words[2:])
        actions.append(parsed.action)
        assert parsed.run_dir == str(Path(text).expanduser())
        assert dict(parsed.options).get(ACTIONS[parsed.action].text_option, text) == text
    expected = {
        "decoder": ["explain", "report", "serve", "generate", "evaluate"],
        "encoder-decoder": ["explain", "report", "generate", "evaluate"],
        "label": ["generate", "evaluate"],
    }
    assert actions == expected[kind]


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("plan base --device 2080 --fit True", "base --compute.remat full"),
        (
            "--experiment base --data.batch-size 64 plan --mesh data=2 fsdp=2 --memory-gb=3",
            "--experiment base --data.batch-size 64 --compute.remat full",
        ),
        (
            "base plan --compute.remat none --data.corpus 'a b'",
            "base --data.corpus 'a b' --compute.remat full",
        ),
    ],
)
def test_the_typed_command_is_repeated_with_changes(typed, again, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch.py", *shlex.split(typed)])
    command = typed_again({"compute.remat": "full"}, without=("plan", *PlanOptions.__dataclass_fields__))
    assert shlex.split(command) == ["python", "launch.py", *shlex.split(again)]
    monkeypatch.setattr(sys, "argv", ["pytest", "base"])
    assert typed_again({}) == ""
    assert launch(("experiment", "a b"), "plan") == 'python launch.py --experiment "a b" plan'


def test_a_plan_that_does_not_fit_keeps_typed_options(monkeypatch, capsys):
    base = Experiment()
    data = replace(base.data, batch_size=64, corpus="my notes.txt")
    big = replace(base, data=data, model=replace(base.model, num_layers=1))  # traced in a tenth of the time
    typed = ["base", "plan", "--data.batch-size", "64", "--data.corpus", "my notes.txt", "--memory-gb", "1.2"]
    monkeypatch.setattr(sys, "argv", ["launch.py", *typed, "--device", "2080"])
    facts = plan(big, Path("run"), PlanOptions(device="2080", memory_gb=1.2, compile="no"))
    command = capsys.readouterr().out.rpartition("python launch.py ")[2]
    parsed = split(shlex.split(command), ["base"])
    assert (parsed.experiment, parsed.action) == ("base", "")
    changed = {name: str(value) for name, value in facts["change"].items()}
    assert dict(parsed.options) == {"data.batch_size": "64", "data.corpus": "my notes.txt"} | changed
