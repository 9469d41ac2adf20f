"""The experiments in folders. Each file is one; only the file that is asked for is run. No heavy imports."""

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from zerotollm.actions import ACTIONS
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.own_code import open_folder, own_code
from zerotollm.suggest import did_you_mean

GROUPS = (
    "from raw text",
    "fine-tuning a pretrained model",
    "translation",
    "many runs: ablations and scaling laws",
    "speedruns",
    "for your own GPU",
    "your own ideas, without changing the package",
)
"""Groups of experiments in the order of the list; other groups follow."""


class Description(NamedTuple):
    """The labelled paragraphs of an experiment's docstring: `Question: ...`, `Command: ...`."""

    question: str = ""
    group: str = ""
    command: str = ""
    time: str = ""
    expected: str = ""

    def short_time(self) -> str:
        """Return the time without the device and the conditions."""
        return re.split(r" on | at | in | to the |[,;(]", self.time)[0].strip()


def folders(own: str, built_in: Path) -> tuple[Path, ...]:
    """Return the folders of experiments, in the order in which a name is looked up.

    `own` is the folder that --experiments names; empty: `experiments` in the working directory, if there is one.
    Raises UsageError if the folder that is named does not exist.
    """
    folder = Path(own or "experiments").expanduser()
    if not folder.is_dir():
        if own:
            near = f"; did you mean --experiment {own}?" if own in names(built_in) else ""
            raise UsageError(f"--experiments {own} is no folder: name a folder of experiment files{near}")
        return (built_in,)
    return (built_in,) if folder.resolve() == built_in else (folder.resolve(), built_in)


def places(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each experiment: the first that has a file of that name."""
    return {name: folder for folder in reversed(folders) for name in names(folder)}


def place(folders: Sequence[Path], name: str) -> Path:
    """Return the folder of an experiment, or raise UsageError; without a name the last folder, the built-in one."""
    known = places(folders)
    if name and name not in known:
        near = did_you_mean(name, [*known])
        raise UsageError(f"unknown experiment {name!r}: one of {', '.join(sorted(known))}{near}")
    return known.get(name, folders[-1])


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def docstring(folder: Path, name: str) -> str:
    """Return an experiment's docstring without running its file. Raises UsageError if it is not Python."""
    return ast.get_docstring(_parse(folder, name)) or ""


def describe(folder: Path, name: str) -> Description:
    """Return the parts of an experiment's docstring. Without labels, its first paragraph is the question."""
    paragraphs = re.split(r"\n\s*\n|\n(?=[A-Z]\w+: )", docstring(folder, name))
    parts = {"question": " ".join(paragraphs[0].split())}
    for paragraph in paragraphs:
        label, colon, text = paragraph.partition(": ")
        if colon and label.lower() in Description._fields:
            parts[label.lower()] = " ".join(text.split())
    return Description(**parts)


def load(folder: Path, name: str) -> Experiment:
    """Return the experiment of `folder/name.py`, with its functions that replace built-in ones, or raise UsageError."""
    _parse(folder, name)
    create = function(folder, name, "experiment")
    experiment = create() if create else None
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{folder / name}.py needs a function `experiment()` that returns an Experiment")
    return replace(experiment, code=own_code(f"{folder.name}.{name}", folder / f"{name}.py"))


def default_action(folder: Path, name: str) -> str:
    """Return the first action whose functions are all in the experiment's file, otherwise `train`."""
    defined = _defined(folder, name) if name in names(folder) else set()
    special = (action for action, entry in ACTIONS.items() if entry.functions)
    return next((action for action in special if defined.issuperset(ACTIONS[action].functions)), "train")


def functions(folder: Path, name: str, required: Iterable[str]) -> list[Callable]:
    """Return functions of an experiment's file. Raises UsageError if one is missing."""
    required = list(required)
    loaded = []
    for wanted in required:
        if (value := function(folder, name, wanted)) is None:
            suitable = [other for other in names(folder) if _defined(folder, other).issuperset(required)]
            raise UsageError(
                f"{folder / name}.py has no function {wanted}(), which this action needs: "
                f"take one of {', '.join(suitable)}"
            )
        loaded.append(value)
    return loaded


def function(folder: Path, name: str, wanted: str) -> Callable | None:
    """Return a function of an experiment's file, or None if the file does not define it."""
    open_folder(folder)
    return getattr(import_module(f"{folder.name}.{name}"), wanted, None)


def _parse(folder: Path, name: str) -> ast.Module:
    path = folder / f"{name}.py"
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not Python: {error}") from None


def _defined(folder: Path, name: str) -> set[str]:
    """Return the names of the functions that an experiment's file defines or passes on (`import f as f`), unrun."""
    body = _parse(folder, name).body
    passed_on = (alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names)
    return {node.name for node in body if isinstance(node, ast.FunctionDef)} | {
        alias.name for alias in passed_on if alias.asname == alias.name
    }
