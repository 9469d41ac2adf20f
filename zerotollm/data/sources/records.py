"""Records of named fields in the user's files: .jsonl, .json, .csv, .tsv and .parquet, each also compressed.

.jsonl     a line is a JSON object
.json      a list of objects, or one object
.csv       the first row names the fields; quotes as in RFC 4180
.tsv       the same with tabs and without quotes
.parquet   only the columns that are asked for are read
"""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from zerotollm.data.config import DataConfig
from zerotollm.data.find import has_suffix
from zerotollm.data.sources.compression import RATIO, read_slice
from zerotollm.data.sources.lines import Record, binary_lines, decoded, field_names, read_content, read_record
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import Stamp, stamp

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FIELDS = ("text", "content", "story")  # that may hold the text, tried in this order
LONGEST = 1 << 26  # bytes of a row of .csv, above which a quote is taken to be open

_warn_once = lru_cache(maxsize=256)(logging.getLogger(__name__).warning)  # a corpus is opened several times


class Span(NamedTuple):
    """Where a text lies: from `start` to `stop`, in bytes of the content or in records; and its line or row, from 1."""

    start: int
    stop: int
    line: int


class Found(NamedTuple):
    """A record and its place, or what is wrong there."""

    span: Span
    place: str
    record: Record | UsageError


def has_records(path: Path) -> bool:
    """Return whether a file holds records, by its suffix."""
    return has_suffix(path.name, SUFFIXES)


def scan_records(path: Path, fields: Sequence[str] = (), ratio: float = RATIO) -> Iterator[Found]:
    """Yield every record of a file. Of .parquet, only the columns among `fields` are read; all if there are none.

    Raises UsageError if the file as a whole cannot be read.
    """
    if has_suffix(path.name, (".parquet",)):
        parquet = _parquet()
        for row, record in enumerate(parquet.scan(path, fields, ratio)):
            yield Found(Span(row, row + 1, row + 1), f"{path}, row {row + 1}", record)
    elif has_suffix(path.name, (".json",)):
        for row, record in enumerate(_json_records(path, stamp(path), ratio)):
            place = f"{path}, object {row + 1}"
            is_object = isinstance(record, dict)
            fault = UsageError(f"{place}: expected an object of fields, not a {type(record).__name__}")
            yield Found(Span(row, row + 1, row + 1), place, record if is_object else fault)
    elif has_suffix(path.name, (".jsonl",)):
        start = 0
        for number, line in enumerate(binary_lines(path, ratio, check=False), 1):
            span = Span(start, start + len(line), number)
            if line.strip() and line.strip() != b"\xef\xbb\xbf":
                yield Found(span, f"{path}, line {number}", _fault_or(partial(_json_line, path, span, line)))
            start = span.stop
    else:
        yield from _scan_table(path, ratio)


def read_record_at(path: Path, fields: Sequence[str], ratio: float, span: Span) -> Record:
    """Return the record that `scan_records` found at `span`. It is best read in order."""
    if has_suffix(path.name, (".parquet",)):
        return _parquet().read_row(path, fields, ratio, span.start)
    if has_suffix(path.name, (".json",)):
        return _json_records(path, stamp(path), ratio)[span.start]
    content = read_slice(path, ratio, span.start, span.stop)
    if has_suffix(path.name, (".jsonl",)):
        return _json_line(path, span, content)
    lines = io.StringIO(decoded(path, span.start, content), newline="\n")  # splitlines splits at U+2028 too
    return dict(zip(_header(path, stamp(path), ratio), next(_csv_reader(path, lines)), strict=True))


def fields_of(path: Path, ratio: float = RATIO) -> list[str]:
    """Return the names of a file's fields: the columns, or those of the first JSON object."""
    if has_suffix(path.name, (".parquet",)):
        return _parquet().columns(path, ratio)
    if has_suffix(path.name, (".csv", ".tsv")):
        return list(_header(path, stamp(path), ratio))
    records = (found.record for found in scan_records(path, (), ratio))
    return next((list(record) for record in records if not isinstance(record, UsageError)), [])


def choose_field(config: DataConfig, place: str, names: Sequence[str]) -> str:
    """Return the field that holds the text: `config.field`, or the first of `FIELDS` that is there.

    Raises UsageError, naming `place` and its fields, if there is none.
    """
    field = config.field or next((name for name in FIELDS if name in names), "")
    if field not in names:
        wanted = repr(config.field) if config.field else "called " + ", ".join(map(repr, FIELDS))
        raise UsageError(
            f"{place} has no field {wanted}; set --data.field to one of its fields: {field_names(names)}; "
            "if the files of a folder or mixture have different fields, name the text "
            f"{FIELDS[0]!r} in each, without --data.field"
        )
    if field not in (config.field, FIELDS[0]):
        _warn_once(f"{config.corpus}: the texts are those of the field {field!r} (--data.field)")
    return field


def _parquet() -> ModuleType:
    from zerotollm.data.sources import parquet  # 0.3 s, which other files do not need

    return parquet


def _json_line(path: Path, span: Span, line: bytes) -> Record:
    return read_record(f"{path}, line {span.line}", decoded(path, span.start, line))


def _fault_or(read: "partial[Record]") -> Record | UsageError:
    try:
        return read()
    except UsageError as fault:
        return fault


@lru_cache(maxsize=1)
def _json_records(path: Path, stamp: Stamp, ratio: float) -> list[Record]:
    content = decoded(path, 0, read_content(path, ratio))
    if not content.strip():
        return []
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); one object in every line is "
            ".jsonl"
        ) from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path}: not JSON that can be read ({error})") from error
    return value if isinstance(value, list) else [value]


def _scan_table(path: Path, ratio: float) -> Iterator[Found]:
    """Yield the rows of .csv or .tsv. A row with more or fewer fields than the header is a fault."""
    table = _Table(path, ratio)
    header = table.header
    for span, row in table:
        place = f"{path}, line {span.line}"
        if len(row) == len(header):
            yield Found(span, place, dict(zip(header, row, strict=True)))
        else:
            yield Found(
                span, place, UsageError(f"{place}: {len(row)} fields, and the header names {len(header)}")
            )


class _Table:
    """The rows of .csv or .tsv after the header, with the place where each begins."""

    def __init__(self, path: Path, ratio: float):
        self._path, self._lines = path, binary_lines(path, ratio)
        self._start, self._read, self._number = Span(0, 0, 1), 0, 0
        self._rows = _csv_reader(path, self._texts())
        self.header = [name.strip() for name in next(self, (None, []))[1]]
        if len(set(self.header)) < len(self.header):
            raise UsageError(f"{path}: the first row names a field twice, and must name the fields")

    def _texts(self) -> Iterator[str]:
        for line in self._lines:
            start, self._read, self._number = self._read, self._read + len(line), self._number + 1
            if self._read - self._start.start > LONGEST:
                raise self._open_quote()
            yield decoded(self._path, start, line)

    def __iter__(self) -> "_Table":
        return self

    def __next__(self) -> tuple[Span, list[str]]:
        row: list[str] = []
        while not row:  # a blank line
            self._start = Span(self._read, 0, self._number + 1)
            try:
                row = next(self._rows)
            except csv.Error as error:
                if self._number > self._start.line:
                    raise self._open_quote() from error
                raise UsageError(f"{self._path}, line {self._start.line}: {error}") from error
        return self._start._replace(stop=self._read), row

    def _open_quote(self) -> UsageError:
        return UsageError(
            f"{self._path}, line {self._start.line}: a quote opens in this row and never closes"
        )


def _csv_reader(path: Path, lines: Iterable[str]) -> "Iterator[list[str]]":
    csv.field_size_limit(2 * LONGEST)  # the default, 128 KB, is less than many texts
    if has_suffix(path.name, (".tsv",)):
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines, strict=True)


@lru_cache(maxsize=16)
def _header(path: Path, stamp: Stamp, ratio: float) -> tuple[str, ...]:
    return tuple(_Table(path, ratio).header)
