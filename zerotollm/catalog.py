"""The experiments in a folder: a file is an experiment, no list is kept, only the one asked for is run."""

import ast
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.suggest import did_you_mean
from zerotollm.suite import Variant


class About(NamedTuple):
    """What an experiment's docstring says, each part after its label: `Question: ...`, `Command: ...`."""

    question: str = ""
    command: str = ""
    time: str = ""
    expected: str = ""


def names(folder: Path) -> list[str]:
    """The experiments in a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def docstring(folder: Path, name: str) -> str:
    """An experiment's docstring, read without running the file. Raises UsageError where it is not Python."""
    path = folder / f"{name}.py"
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
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
    module = _module(folder, name)
    experiment = module.experiment() if hasattr(module, "experiment") else None
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{folder / name}.py needs a function `experiment()` that returns an Experiment")
    return experiment


def has_variants(folder: Path, name: str) -> bool:
    """Whether `folder/name.py` defines `variants`, read without running it; False where there is no such file."""
    if name not in names(folder):
        return False
    docstring(folder, name)  # says where it is not Python
    tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == "variants" for node in tree.body)


def load_suite(
    folder: Path, name: str
) -> tuple[Callable[[Experiment, str], Experiment], Callable[[Experiment], tuple[Variant, ...]]]:
    """`budget(base, size)` and `variants(base)` of `folder/name.py`. Raises UsageError where it has none."""
    module = _module(folder, name)
    if not (hasattr(module, "variants") and hasattr(module, "budget")):
        having = ", ".join(other for other in names(folder) if has_variants(folder, other))
        raise UsageError(
            f"{name} has no variants to compare: take one of {having}, or give {folder / name}.py the functions "
            "`variants(base)` and `budget(base, size)`"
        )
    return module.budget, module.variants


def _module(folder: Path, name: str) -> ModuleType:
    known = names(folder)
    if name not in known:
        raise UsageError(f"unknown experiment {name!r}: one of {', '.join(known)}{did_you_mean(name, known)}")
    docstring(folder, name)
    return import_module(f"{folder.name}.{name}")
