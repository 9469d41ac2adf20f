"""compare: write the tables and figures of a suite again, from its finished runs alone, and show the table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zerotollm.actions import TabulateOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically
from zerotollm.studies.published import published_markdown
from zerotollm.studies.records import (
    FIGURE_HTML,
    FIGURE_PNG,
    PUBLISHED,
    TABLE,
    TABLE_JSON,
    read_runs,
)
from zerotollm.studies.table import Row, footer, make_rows, markdown, short_markdown, terminal_table

if TYPE_CHECKING:
    from zerotollm.console import Console

WIDTH = 180
"""Columns of the table where the output is no terminal."""


def tabulate(experiment: Experiment, run_dir: Path, options: TabulateOptions) -> dict[str, list[Row]]:
    """Works on a folder of runs, or on every one in the run directory of a suite. Returns their rows by name.

    The same runs give the same files, byte for byte, with the same versions of the packages that draw. Raises
    UsageError where there are no runs, or `options.into` has no place for their table.
    """
    from zerotollm.console import Console

    if any(run_dir.glob("*/seed-*.json")):
        folders = [run_dir]
    else:
        folders = sorted({path.parents[1] for path in run_dir.glob("*/*/seed-*.json")})
    if not folders:
        raise UsageError(f"{run_dir} holds no finished run of a suite: ablate first, or name its --run-dir")
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH, soft_wrap=True)
    results = {folder.name: write_results(folder, console) for folder in folders}
    if options.into:
        page = Path(options.into)
        text = read_page(page)
        for name, rows in results.items():
            text = with_table(text, name, page_markdown(rows), page)
        write_atomically(page, text)
        console.print(f"written: {page}", highlight=False)
    return results


def page_markdown(rows: Sequence[Row]) -> str:
    """What stands of a suite on a page about more than it: beside the paper's numbers, where it has some."""
    return published_markdown(rows).rstrip("\n") or short_markdown(rows)


def read_page(page: Path) -> str:
    """The text that a table is to be written into. Raises UsageError where there is none, or it is not UTF-8."""
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UsageError(f"cannot read {page}: {why}; give --into a text that is there, in UTF-8") from None


def with_table(text: str, name: str, table: str, page: Path | str = "the text") -> str:
    """The text with `table` between the lines `<!-- table NAME -->` and `<!-- end -->`. Raises UsageError where they
    are not found."""
    begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UsageError(
            f"{page} has no lines {begin.strip()} and {end}: write them where the table shall stand"
        )
    return f"{before}{begin}{table}\n{end}{after}"


def write_results(folder: Path, console: "Console") -> list[Row]:
    """Makes tables and figures from the runs in a folder, shows the table and returns its rows."""
    from zerotollm.studies.figure import picture

    rows = make_rows(read_runs(folder))
    write_atomically(folder / TABLE, markdown(rows))
    write_atomically(
        folder / TABLE_JSON, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    for name in (FIGURE_HTML, FIGURE_PNG):
        picture(rows).save(folder / name)
    console.print(terminal_table(rows))
    console.print(footer(rows), highlight=False)
    if published := published_markdown(rows):
        write_atomically(folder / PUBLISHED, published)
        console.print(f"\n{published}", highlight=False, markup=False)
    console.print(f"written: {folder}/{TABLE}, {TABLE_JSON}, {FIGURE_HTML}, {FIGURE_PNG}", highlight=False)
    return rows
