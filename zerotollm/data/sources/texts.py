"""Texts in the user's files, whatever their format: found once, then read by their place.

.txt, .md          the file, or each of its parts between blank lines; without the front matter of .md
.html, .epub       the text of the page, or of the book
others             the field `field` of every record, see `records.py`
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from zerotollm.data.find import has_suffix
from zerotollm.data.sources.compression import DAMAGED, damaged, read_slice
from zerotollm.data.sources.lines import Record, binary_lines, cannot_read, decoded, text_field, unix_ends
from zerotollm.data.sources.markup import front_matter_size, read_book, read_page
from zerotollm.data.sources.records import Span, has_records, read_record_at, scan_records
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import Stamp, stamp


@dataclass(frozen=True)
class Reading:
    """How files are read."""

    ratio: float  # see `compression.open_binary`
    field: str = "text"  # of records
    mode: str = "file"  # of .txt and .md: "file" or "paragraph"


def is_whole(path: Path, mode: str) -> bool:
    """Return whether a file is one text."""
    return has_suffix(path.name, (".html", ".epub")) or (mode == "file" and not has_records(path))


def scan_texts(path: Path, reading: Reading) -> Iterator[tuple[Span, str | UsageError]]:
    """Yield the place and text of everything in a file, or what is wrong there.

    Raises UsageError if the file as a whole cannot be read.
    """
    if has_records(path):
        for span, place, record in scan_records(path, (reading.field,), reading.ratio):
            if not isinstance(record, UsageError):
                record = _fault_or_text(place, record, reading.field)
            yield span, record
    elif has_suffix(path.name, (".html", ".epub")):
        yield Span(0, 1, 1), _page(path, stamp(path), reading.ratio)
    else:
        for span, content in scan_parts(path, reading):
            yield span, _part(path, reading.mode, span, content)


def read_text(path: Path, reading: Reading, span: Span) -> str:
    """Return the text that `scan_texts` found at `span`. Texts are best read in order."""
    try:
        if has_records(path):
            record = read_record_at(path, (reading.field,), reading.ratio, span)
            return _record_text(f"{path}, line {span.line}", record, reading.field)
        if has_suffix(path.name, (".html", ".epub")):
            return _page(path, stamp(path), reading.ratio)
        content = read_slice(path, reading.ratio, span.start, span.stop)
    except DAMAGED as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    return _part(path, reading.mode, span, content)


def scan_parts(path: Path, reading: Reading) -> Iterator[tuple[Span, bytes]]:
    """Yield the place and bytes of a file of .txt or .md, or of each of its paragraphs."""
    start, first, lines = 0, (0, 1), []
    front = front_matter_size(path, reading.ratio) if has_suffix(path.name, (".md",)) else 0
    for number, line in enumerate(binary_lines(path, reading.ratio), 1):
        if start < front:
            pass
        elif reading.mode == "paragraph" and not line.strip():
            if lines:
                yield Span(first[0], start, first[1]), b"".join(lines)
            lines = []
        else:
            if not lines:
                first = (start, number)
            lines.append(line)
        start += len(line)
    if lines:
        yield Span(first[0], start, first[1]), b"".join(lines)


def _part(path: Path, mode: str, span: Span, content: bytes) -> str:
    text = unix_ends(decoded(path, span.start, content))
    return text.strip("\n") if mode == "paragraph" else text


def _record_text(place: str, record: Record, field: str) -> str:
    return text_field(place, record, field, may_be_blank=True).replace("\r\n", "\n")


def _fault_or_text(place: str, record: Record, field: str) -> str | UsageError:
    try:
        return _record_text(place, record, field)
    except UsageError as fault:
        return fault


@lru_cache(maxsize=1)
def _page(path: Path, stamp: Stamp, ratio: float) -> str:
    return (read_book if has_suffix(path.name, (".epub",)) else read_page)(path, ratio)
