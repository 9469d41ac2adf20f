"""generate, around a run that needs no training: what it writes, and what it refuses before any work."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from zerotollm.actions.config import GenerateOptions
from zerotollm.actions.generate import generate
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment

EXPERIMENT = Experiment()
OPTIONS = GenerateOptions(**asdict(EXPERIMENT.sample), checkpoint="last")
PIECES = ["In the", " beginning\x1b[2J", " 光\n"]


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """A run that notes what it is asked for and writes PIECES."""
    noted = []
    stub = SimpleNamespace(labels=(), stream=lambda **sampling: noted.append(sampling) or iter(PIECES))
    monkeypatch.setattr("zerotollm.actions.generate.load", lambda path, step, mesh: stub)
    monkeypatch.setattr("zerotollm.actions.generate.cache_compiled_programs", lambda data: None)
    return noted


def test_writes_and_returns_exactly_the_pieces(asked, capsys):
    options = replace(OPTIONS, prompt="In the", seed=7)
    assert generate(EXPERIMENT, Path("x"), options) == "".join(PIECES)
    assert capsys.readouterr().out == "".join(PIECES) + "\n"
    assert (asked[0]["prompt"], asked[0]["seed"]) == ("In the", 7)
    assert "checkpoint" not in asked[0]


def test_a_terminal_gets_no_control_characters(asked, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    generate(EXPERIMENT, Path("x"), OPTIONS)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "光" in out


def test_options_out_of_range_are_refused_before_any_work(asked):
    with pytest.raises(UsageError, match="top_p"):
        generate(EXPERIMENT, Path("x"), replace(OPTIONS, top_p=2.0))
    assert not asked
