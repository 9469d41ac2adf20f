"""The experiments in a folder: a file is an experiment, no list is kept, only the one asked for is run."""

import ast
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from zerotollm.actions import ACTIONS
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.suggest import did_you_mean

GROUPS = (
    "from raw text",
    "fine-tuning, from a model that was trained",
    "translation",
    "many runs: ablations and scaling laws",
    "for a GPU of your own",
)
"""Groups of experiments, in the order in which they are listed; others follow."""


class About(NamedTuple):
    """What an experiment's docstring says, each part after its label: `Question: ...`, `Command: ...`."""

    question: str = ""
    group: str = ""
    command: str = ""
    time: str = ""
    expected: str = ""

    def short_time(self) -> str:
        """The time without the device and the conditions."""
        return re.split(r" on | at | in | to the |[,;(]", self.time)[0].strip()


def names(folder: Path) -> list[str]:
    """The experiments in a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def docstring(folder: Path, name: str) -> str:
    """An experiment's docstring, read without running the file. Raises UsageError where it is not Python."""
    return ast.get_docstring(_parse(folder, name)) or ""


def _parse(folder: Path, name: str) -> ast.Module:
    path = folder / f"{name}.py"
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not Python: {error}") from None


def about(text: str) -> About:
    """The parts of a docstring; without labels its first paragraph is the question."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n|\n(?=[A-Z]\w+: )", text)]
    labelled = {}
    for paragraph in paragraphs:
        label, colon, rest = paragraph.partition(": ")
        if colon and label.lower() in About._fields:
            labelled[label.lower()] = rest
    return About(**({"question": paragraphs[0]} | labelled))


def load(folder: Path, name: str) -> Experiment:
    """The experiment of that name: `experiment()` in `folder/name.py`, whose package must be importable.

    Raises UsageError where there is none; an error in the file itself is let through as it is.
    """
    known = names(folder)
    if name not in known:
        raise UsageError(f"unknown experiment {name!r}: one of {', '.join(known)}{did_you_mean(name, known)}")
    docstring(folder, name)
    module = import_module(f"{folder.name}.{name}")
    experiment = module.experiment() if hasattr(module, "experiment") else None
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{folder / name}.py needs a function `experiment()` that returns an Experiment")
    return experiment


def default_action(folder: Path, name: str) -> str:
    """What is done where no action is named: the one that the file has functions for, else `train`."""
    defined = _defined(folder, name) if name in names(folder) else set()
    special = (action for action, about in ACTIONS.items() if about.functions)
    return next((action for action in special if defined.issuperset(ACTIONS[action].functions)), "train")


def _defined(folder: Path, name: str) -> set[str]:
    """Names of the functions in the experiment's file, read without running it."""
    return {node.name for node in _parse(folder, name).body if isinstance(node, ast.FunctionDef)}


def functions(folder: Path, name: str, wanted: Iterable[str]) -> list[Callable[..., Any]]:
    """Functions of the experiment's file besides `experiment`. Raises UsageError where one is missing."""
    wanted = list(wanted)
    module = import_module(f"{folder.name}.{name}") if wanted else None
    for function in wanted:
        if not hasattr(module, function):
            having = [other for other in names(folder) if _defined(folder, other).issuperset(wanted)]
            raise UsageError(
                f"{folder / name}.py has no function {function}(), which this action works on: "
                f"take one of {', '.join(having)}"
            )
    return [getattr(module, function) for function in wanted]


def function(folder: Path, name: str, wanted: str) -> Callable[..., Any] | None:
    """A function of the experiment's file, or None where it has no such function."""
    return getattr(import_module(f"{folder.name}.{name}"), wanted, None)
