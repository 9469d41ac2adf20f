"""What the README names is there."""

import re
from importlib import import_module
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_every_box_of_the_paper_is_a_function():
    table = README.partition("box by box:")[2].partition("\n## ")[0]
    names = re.findall(r"`(zerotollm(?:\.\w+)+)`", table)
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(import_module(module), attribute)), name


def test_the_table_of_questions_has_its_place():
    assert "<!-- table questions -->" in README
