"""The functions of an experiment's file that replace built-in ones, as a value. Light: the command line reads it."""

import ast
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from zerotollm.errors import RunError, UsageError

REPLACEABLE = ("model", "optimizer", "objective", "dataset")
"""Functions of an experiment's file that replace those of `zerotollm.components` with the same name."""

NOT_HASHED = ("experiment", "variants", "budget", "ladder", "next_size", "target", "recipe_for_pairs")
"""Functions of an experiment's file that return experiments, fields or a target: what they return is compared."""


@dataclass(frozen=True)
class OwnCode:
    """Which functions replace built-in ones, and the code they had when the run began."""

    module: str = ""
    """of the experiment's file: experiments.NAME; empty where nothing is replaced"""
    functions: str = ""
    """their names, with spaces between"""
    sha256: str = ""
    """of the file without comments, docstrings and the functions of NOT_HASHED"""

    def function(self, name: str) -> Callable | None:
        """Return the function of that name, or None where the built-in one stands.

        Raises RunError where the file is not found, or has changed since.
        """
        if name not in self.functions.split():
            return None
        package, _, file = self.module.partition(".")
        if package.isidentifier() and Path(package, f"{file}.py").is_file():
            open_folder(Path(package))
        spec = find_spec(package) and find_spec(self.module)
        if spec is None or spec.origin is None or not Path(spec.origin).exists():
            raise RunError(
                f"{self.module}, whose {name}() this run was trained with, is not found: bring it back, or name its "
                "folder with --experiments"
            )
        if own_code(self.module, Path(spec.origin)).sha256 != self.sha256:
            raise RunError(
                f"{spec.origin} has changed since this run was trained with its {name}(): bring that code back, or "
                "train anew with another --run-dir"
            )
        return getattr(import_module(self.module), name)


def open_folder(folder: Path) -> None:
    """Let Python import the files of a folder of experiments as FOLDER.FILE.

    A package of the same name keeps its other files: in a folder `experiments` of one's own, `from experiments.base
    import experiment` imports the built-in base unless the folder has a base.py too. Raises UsageError where Python
    cannot import from a folder of that name.
    """
    folder = folder.resolve()
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    package = import_module(folder.name) if folder.name.isidentifier() else None
    paths = getattr(package, "__path__", None)
    if package is None or paths is None:
        raise UsageError(f"{folder}: Python cannot import from a folder of this name: rename it")
    if str(folder) not in paths:
        package.__path__ = [str(folder), *paths]


def own_code(module: str, path: Path) -> OwnCode:
    """Return the functions of the file that replace built-in ones; the file is read, not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = tuple(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in REPLACEABLE
    )
    if not functions:
        return OwnCode()
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name in NOT_HASHED)
    ]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and ast.get_docstring(ast.Module(body, [])) is not None:
            del body[0]
    return OwnCode(module, " ".join(functions), hashlib.sha256(ast.dump(tree).encode()).hexdigest())
