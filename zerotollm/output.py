"""Standard output and error that survive a lost terminal, pipe or disk. No heavy imports."""

import io
import os
import sys
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO


class Output(io.TextIOWrapper):
    """A text stream whose `write` and `flush` never raise: a run must not end because nobody reads its output.

    Characters that the encoding lacks are written as escapes, such as `\\u06cc`. After the first error (a closed pipe,
    a full disk, a lost terminal) all output goes to the null device, also that of C code.
    """

    lost: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError) as error:
            self._discard(error)

    def _discard(self, error: OSError | ValueError) -> None:
        self.lost = self.lost or error
        with suppress(OSError, ValueError):  # a stream that Python closed has no descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def protect_output() -> None:
    """Replace `sys.stdout` and `sys.stderr` by `Output`, and open the standard streams that are closed."""
    # The next file, maybe a checkpoint, would get a free descriptor below 3, and C code would log into it.
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(null)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    sys.stdout = sys.__stdout__ = _protected(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _protected(sys.stderr, 2)


def _protected(stream: TextIO | None, descriptor: int) -> Output:
    if not isinstance(stream, io.TextIOWrapper):
        return Output(open(descriptor, "wb", closefd=False), encoding="utf-8", line_buffering=True)
    if sys.platform != "win32":
        with suppress(OSError):
            # A parent process may leave it non-blocking: then a write that would block raises.
            os.set_blocking(descriptor, True)
    encoding, line_buffering, write_through = stream.encoding, stream.line_buffering, stream.write_through
    return Output(stream.detach(), encoding, "backslashreplace", None, line_buffering, write_through)


def printable(text: str) -> str:
    """Return the text with U+FFFD for every control character but tab and line end, which a terminal would obey."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\t\n" else c
        for c in text
    )


def write_pieces(pieces: Iterable[str]) -> str:
    """Write the pieces of a text to standard output as they come, for a terminal `printable`. Return the text."""
    shown = printable if sys.stdout.isatty() else str
    texts = []
    for piece in pieces:
        texts.append(piece)
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(texts)
