"""What the README names is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from zerotollm.actions.suite_runs import read_runs
from zerotollm.actions.suite_table import make_rows, markdown, short_markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEPT = sorted(path.parent for path in ROOT.glob("results/*/*/table.json"))


def test_every_box_of_the_paper_is_a_function():
    table = README.partition("box by box:")[2].partition("\n## ")[0]
    names = re.findall(r"`(zerotollm(?:\.\w+)+)`", table)
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(import_module(module), attribute)), name


def test_the_table_of_questions_has_its_place():
    assert "<!-- table questions -->" in README


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_kept_tables_come_from_kept_runs(folder):
    rows = make_rows(read_runs(folder))
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown(rows)
    assert f"<!-- table {folder.name} -->\n{short_markdown(rows)}\n<!-- end -->" in README
    assert len(rows) > 20
    assert all(row["shared"]["trained"] == 3 for row in rows)
