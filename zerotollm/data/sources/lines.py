"""Lines of the user's files, the same for text, jsonl, tsv and line-aligned pairs.

A line ends with "\\n" or "\\r\\n", and in a file without any "\\n" with "\\r". A "\\r" elsewhere is a character.
"""

import json
import reprlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from zerotollm.data.sources.compression import DAMAGED, RATIO, damaged, open_binary
from zerotollm.errors import UsageError
from zerotollm.types import Json

Record = Json
MOST_NAMES = 20  # fields listed in a message


def binary_lines(path: Path, ratio: float = RATIO, *, check: bool = True) -> Iterator[bytes]:
    """Yield the lines of a file's (decompressed) content, with their ends.

    Raises UsageError if the file is damaged or, with `check`, a line is not text.
    """
    try:
        with open_binary(path, ratio) as file:
            for number, line in enumerate(_split(file), 1):
                if check and b"\0" in line:
                    message = f"{path} is not text: line {number} contains a NUL byte (binary, or UTF-16)"
                    raise UsageError(message)
                yield line
    except DAMAGED as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def read_content(path: Path, ratio: float = RATIO, size: int = -1) -> bytes:
    """Return the (decompressed) content of a file, or its first `size` bytes. Raises UsageError if it is damaged."""
    try:
        with open_binary(path, ratio) as file:
            return file.read(size)
    except DAMAGED as error:
        raise damaged(path, error) from error
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot read {path}: {error.strerror or error}")


def _split(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(file):
        # In a file without "\n" the first line is the whole file.
        yield from line.splitlines(keepends=True) if number == 0 and _ends_in_cr(line) else [line]


def _ends_in_cr(first_line: bytes) -> bool:
    return b"\r" in first_line and not first_line.endswith(b"\n")


def ends_in_cr(path: Path, ratio: float = RATIO) -> bool:
    """Return whether the lines of a file end with a lone "\\r"."""
    with open_binary(path, ratio) as file:
        return _ends_in_cr(file.readline())


def unix_ends(text: str) -> str:
    """Return the text with "\\n" at the end of every line."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def decoded(path: Path, start: int, content: bytes) -> str:
    """Return the text of bytes of UTF-8 from byte `start` of a file, without a byte order mark, or raise UsageError."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte {start + error.start} (counted from 0) is "
            f"0x{content[error.start]:02x}; save it as UTF-8"
        ) from error
    return text.removeprefix("\ufeff") if start == 0 else text


def check_encodable(place: str, text: str) -> None:
    """Raise UsageError if UTF-8 cannot encode a text: JSON can spell half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{place}: half of a surrogate pair (\\ud800 to \\udfff) is not text") from None


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends. Raises UsageError if it is not UTF-8 text."""
    start = 0
    for line in binary_lines(path):
        yield decoded(path, start, line).rstrip("\r\n")
        start += len(line)


def read_records(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, Record]]:
    """Yield (`FILE, line N`, the JSON object there) for every line that is not blank, or raise UsageError."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, read_record(place, line)


def read_record(place: str, line: str) -> Record:
    """Return the object of a line of JSON. Raises UsageError, naming `place`, if it is not one."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # of int
        reason = f"a whole number of more than {sys.get_int_max_str_digits():,} digits"
    else:
        if isinstance(record, dict):
            return record
        raise UsageError(f"{place}: expected an object of fields, not a {type(record).__name__}")
    raise UsageError(f"{place}: not JSON ({reason})")


def label_field(place: str, record: Record, field: str) -> str:
    """Return a label, which is a text or a whole number. Raises UsageError, naming `place`, if there is none."""
    number = record.get(field)
    is_number = isinstance(number, int) and not isinstance(number, bool)
    return str(number) if is_number else text_field(place, record, field)


def text_field(place: str, record: Record, field: str, *, may_be_blank: bool = False) -> str:
    """Return the text in a field of a record. Raises UsageError, naming `place`, if there is none."""
    text = record.get(field)
    if isinstance(text, str) and (may_be_blank or text.strip()):
        check_encodable(f"{place}, field {field!r}", text)
        return text
    problem = "missing" if field not in record else "empty" if text in ("", None) else reprlib.repr(text)
    raise UsageError(f"{place}: field {field!r} is {problem}; expected a text; fields: {field_names(record)}")


def field_names(names: Iterable[str]) -> str:
    """Return the names of fields for a message; of many the first."""
    names = list(names)
    shown = [name if name.isprintable() else repr(name) for name in names[:MOST_NAMES]]
    more = len(names) - MOST_NAMES
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "") or "none"
