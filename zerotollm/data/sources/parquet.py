"""Parquet files, read column by column in batches of rows: memory does not grow with the file.

Importing pyarrow takes 0.3 s, so this file is imported when the first Parquet file is read.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zerotollm.data.sources.compression import compression
from zerotollm.data.sources.lines import Record, cannot_read, field_names, read_content
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import Stamp, stamp

ROWS = 1024  # rows decoded at once
BUFFER = 1 << 20  # bytes read ahead in each column


def columns(path: Path, ratio: float) -> list[str]:
    """Return the names of the columns."""
    return _open(path, ratio).schema_arrow.names


def scan(path: Path, fields: Sequence[str], ratio: float) -> Iterator[Record]:
    """Yield every row as {column: value}, of the columns among `fields`, or of all if `fields` is empty.

    Raises UsageError if the file is damaged, naming the group of rows, or has none of the fields.
    """
    file = _open(path, ratio)
    for group in range(file.num_row_groups):
        for batch in _batches(path, file, group, fields):
            yield from batch


def read_row(path: Path, fields: Sequence[str], ratio: float, row: int) -> Record:
    """Return a row as `scan` yields it. Rows are best read in order."""
    return _cursor(path, stamp(path), tuple(fields), ratio).read(row)


class _Cursor:
    """The batch of rows that was read last."""

    def __init__(self, path: Path, fields: Sequence[str], ratio: float):
        self._path, self._fields, self._file = path, fields, _open(path, ratio)
        metadata, end = self._file.metadata, 0
        self._ends = [end := end + metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group, self._first = -1, 0
        self._batches: Iterator[list[Record]] = iter(())
        self._batch: list[Record] = []

    def read(self, row: int) -> Record:
        group = next(number for number, end in enumerate(self._ends) if row < end)
        if group != self._group or row < self._first:
            self._group, self._first, self._batch = group, (self._ends[group - 1] if group else 0), []
            self._batches = _batches(self._path, self._file, group, self._fields)
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._batches)
        return self._batch[row - self._first]


@lru_cache(maxsize=1)
def _cursor(path: Path, stamp: Stamp, fields: tuple[str, ...], ratio: float) -> _Cursor:
    return _Cursor(path, fields, ratio)


def _open(path: Path, ratio: float) -> pq.ParquetFile:
    try:
        if not compression(path):
            return pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        return pq.ParquetFile(pa.BufferReader(read_content(path, ratio)))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a complete Parquet file: {_first_line(error)}") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _batches(path: Path, file: pq.ParquetFile, group: int, fields: Sequence[str]) -> Iterator[list[Record]]:
    names = file.schema_arrow.names
    chosen = [name for name in fields if name in names] if fields else names
    if not chosen:
        raise UsageError(f"{path} has no column {' or '.join(fields)}; columns: {field_names(names)}")
    try:
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=chosen, use_threads=False):
            values = [batch.column(name).to_pylist() for name in chosen]
            yield [dict(zip(chosen, row, strict=True)) for row in zip(*values, strict=True)]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}, row group {group + 1} of {file.num_row_groups}, is damaged: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
