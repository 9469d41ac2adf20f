"""Lines of the user's files, the same for text, jsonl, tsv and line-aligned pairs.

A line ends with "\\n" or "\\r\\n", and in a file without any "\\n" with "\\r". A "\\r" elsewhere is a character.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zerotollm.errors import UsageError


def open_binary(path: Path) -> BinaryIO:
    """The content of a file, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def binary_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file's (unpacked) content, with their ends. Raises UsageError for whatever is wrong with the
    file itself."""
    try:
        with open_binary(path) as file:
            for number, line in enumerate(_split(file), 1):
                if b"\0" in line:
                    raise UsageError(
                        f"{path} is not text: it holds a NUL byte in line {number} (binary, or UTF-16)"
                    )
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _split(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(file):
        # The first line is the whole file where nothing ends it.
        yield from line.splitlines(keepends=True) if number == 0 and _ends_in_cr(line) else [line]


def _ends_in_cr(first_line: bytes) -> bool:
    return b"\r" in first_line and not first_line.endswith(b"\n")


def ends_in_cr(path: Path) -> bool:
    """Whether the lines of a file end with a lone "\\r"."""
    with open_binary(path) as file:
        return _ends_in_cr(file.readline())


def unix_ends(text: str) -> str:
    """The text with "\\n" at the end of every line."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def decoded(path: Path, start: int, content: bytes) -> str:
    """The text of the bytes that begin at byte `start` of a file, without a byte order mark. Raises UsageError where
    they are no UTF-8."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte {start + error.start} (counted from 0) is "
            f"0x{content[error.start]:02x}; save it as UTF-8"
        ) from error
    return text.removeprefix("\ufeff") if start == 0 else text


def check_encodable(place: str, text: str) -> None:
    """Raises UsageError, beginning with `place`, for a text that UTF-8 cannot hold: JSON may spell such a one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{place}: half of a surrogate pair (\\ud800 to \\udfff) is not text") from None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends. Raises UsageError, naming the place, where it is no UTF-8 text."""
    start = 0
    for line in binary_lines(path):
        yield decoded(path, start, line).rstrip("\r\n")
        start += len(line)


def read_records(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE, line N`, the object there) of every line of jsonl that is not blank.

    Raises UsageError, naming the place, for a line that `read_json` refuses or that is no object.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}, line {number}"
            record = read_json(place, line)
            if not isinstance(record, dict):
                raise UsageError(f"{place}: a {type(record).__name__}, and must be an object of fields")
            yield place, record


def read_json(place: str, line: str) -> Any:
    """The value of a line of JSON. Raises UsageError, beginning with `place`, for whatever Python cannot read."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError:  # of int
        reason = f"a whole number of more than {sys.get_int_max_str_digits():,} digits"
    raise UsageError(f"{place}: not JSON ({reason})")
