"""The package stays readable: one page of training, honest types, few places that ask for the architecture."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "zerotollm"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_training_is_one_function_on_one_page():
    tree = ast.parse(SOURCES[PACKAGE / "actions" / "train.py"])
    (train,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert train.end_lineno - train.lineno < 60


def test_signatures_carry_types():
    untyped = sum(len(re.findall(r"\bAny\b", source)) for source in SOURCES.values())
    assert untyped <= 120, "name the type; Any is for JSON and for libraries without types"


def test_few_places_look_at_the_architecture():
    """A net, or the experiment's task, says what is asked; the field is for those who build a net."""
    pattern = re.compile(r"\w\.architecture\b")
    places = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path, source in SOURCES.items()
        for line in source.splitlines()
        if pattern.search(line) and "family.architecture" not in line and "model.architecture to" not in line
    ]
    assert len(places) <= 8, "\n".join(places)
