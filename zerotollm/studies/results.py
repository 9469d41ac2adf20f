"""The files that are made from the runs of a suite: tables and figures."""

import json
from collections.abc import Sequence
from pathlib import Path

from zerotollm.console import Console
from zerotollm.host.atomic_files import write_atomically
from zerotollm.studies.figure import picture
from zerotollm.studies.published import published_markdown
from zerotollm.studies.records import (
    FIGURE_HTML,
    FIGURE_PNG,
    PUBLISHED,
    TABLE,
    TABLE_JSON,
    read_looks,
    read_runs,
)
from zerotollm.studies.table import Row, footer, make_rows, markdown, short_markdown, terminal_table

WIDTH = 180
"""Columns of the table where the output is not a terminal."""


def wide_console() -> Console:
    """Return a console on which the table is not squeezed where the output is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH, soft_wrap=True)


def page_markdown(rows: Sequence[Row]) -> str:
    """Return the table for a page on several subjects: compared with the paper's numbers, where it has some."""
    return published_markdown(rows).rstrip("\n") or short_markdown(rows)


def rows_of(folder: Path) -> list[Row]:
    """Return the rows of the finished runs in a folder."""
    return make_rows(read_runs(folder), looks=read_looks(folder))


def write_results(folder: Path, console: Console) -> list[Row]:
    """Write tables and figures of the runs in a folder, show the table and return its rows."""
    rows = rows_of(folder)
    table_json = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / TABLE, markdown(rows))
    write_atomically(folder / TABLE_JSON, table_json)
    for name in (FIGURE_HTML, FIGURE_PNG):
        picture(rows).save(folder / name)
    console.print(terminal_table(rows))
    console.print(footer(rows))
    if published := published_markdown(rows):
        write_atomically(folder / PUBLISHED, published)
        console.print(f"\n{published}")
    console.print(f"written: {folder}/{TABLE}, {TABLE_JSON}, {FIGURE_HTML}, {FIGURE_PNG}")
    return rows
