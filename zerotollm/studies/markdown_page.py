"""A generated table inside a Markdown page, between `<!-- table NAME -->` and `<!-- end -->`."""

from collections.abc import Mapping
from pathlib import Path

from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import write_atomically


def read_page(page: Path) -> str:
    """Return the text of a page. Raises UsageError where it cannot be read, or is not UTF-8."""
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UsageError(f"cannot read {page}: {why}; give --into an existing text file in UTF-8") from None


def with_table(text: str, name: str, table: str, page: Path | str = "the text") -> str:
    """Return the text with the table of that name replaced. Raises UsageError where the text has no place for it."""
    start, end = f"<!-- table {name} -->\n", "<!-- end -->"
    before, has_start, rest = text.partition(start)
    _, has_end, after = rest.partition(end)
    if not (has_start and has_end):
        raise UsageError(
            f"{page} has no lines {start.strip()} and {end}: write them where the table is to stand"
        )
    return f"{before}{start}{table}\n{end}{after}"


def write_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Replace the tables of these names in a page. Raises UsageError as `read_page` and `with_table` do."""
    text = read_page(page)
    for name, table in tables.items():
        text = with_table(text, name, table, page)
    write_atomically(page, text)
