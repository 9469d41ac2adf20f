"""The functions of an experiment's file that replace built-in ones, as a value. Light: the command line reads it."""

import ast
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from zerotollm.errors import RunError

REPLACEABLE = ("model", "optimizer", "objective", "dataset")
"""Functions of an experiment's file that replace those of `zerotollm.components` with the same name."""


@dataclass(frozen=True)
class OwnCode:
    """Which functions replace built-in ones, and the code they had when the run began."""

    module: str = ""
    """of the experiment's file: experiments.NAME; empty where nothing is replaced"""
    functions: str = ""
    """their names, with spaces between"""
    sha256: str = ""
    """of the file without comments, docstrings and `experiment()`"""

    def function(self, name: str) -> Callable | None:
        """Return the function of that name, or None where the built-in one stands.

        Raises RunError where the file is not found, or has changed since.
        """
        if name not in self.functions.split():
            return None
        spec = find_spec(self.module.partition(".")[0]) and find_spec(self.module)
        if spec is None or spec.origin is None or not Path(spec.origin).exists():
            raise RunError(
                f"{self.module}, whose {name}() this run was trained with, is not found: bring it back"
            )
        if own_code(self.module, Path(spec.origin)).sha256 != self.sha256:
            raise RunError(
                f"{spec.origin} has changed since this run was trained with its {name}(): bring that code back, or "
                "train anew with another --run-dir"
            )
        return getattr(import_module(self.module), name)


def own_code(module: str, path: Path) -> OwnCode:
    """Return the functions of the file that replace built-in ones; the file is read, not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = tuple(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in REPLACEABLE
    )
    if not functions:
        return OwnCode()
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == "experiment")
    ]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and ast.get_docstring(ast.Module(body, [])) is not None:
            del body[0]
    return OwnCode(module, " ".join(functions), hashlib.sha256(ast.dump(tree).encode()).hexdigest())
