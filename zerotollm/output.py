"""Standard output and error that no terminal, pipe or full disk can turn into an error. No heavy imports."""

import io
import os
import sys
import unicodedata
from contextlib import suppress


class Output(io.TextIOWrapper):
    """A text stream whose `write` and `flush` never raise: a run must not end because nobody reads what it says.

    What the encoding cannot hold is written as an escape, such as `\\u06cc`. After the first error (a closed pipe, a
    full disk, a terminal that is gone) everything goes to the null device, also what other code writes to the file
    descriptor.
    """

    lost: OSError | ValueError | None = None
    """the first error"""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        self.lost = self.lost or error
        with suppress(OSError, ValueError):  # a stream that Python itself has closed has no descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def protect_output() -> None:
    """Replace `sys.stdout` and `sys.stderr` by `Output`, and open the standard streams that were closed."""
    # A descriptor below 3 that is free would be taken by the next file, a checkpoint perhaps, into which C code logs.
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(null)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdin.reconfigure(errors="surrogateescape")
    sys.stdout = sys.__stdout__ = _protected(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _protected(sys.stderr, 2)


def _protected(stream: io.TextIOWrapper | None, descriptor: int) -> Output:
    if stream is None:
        return Output(open(descriptor, "wb", closefd=False), encoding="utf-8", line_buffering=True)
    with suppress(OSError):
        # A parent may have left it non-blocking, and a write that would block is an error then.
        os.set_blocking(descriptor, True)
    how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    encoding = stream.encoding
    return Output(stream.detach(), encoding=encoding, errors="backslashreplace", **how)


def printable(text: str) -> str:
    """The text with every control character but tab and line end as U+FFFD: a model may write any character, and a
    terminal must not obey it. Joiners, no-break spaces and all other characters stay as they are."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\t\n" else c
        for c in text
    )
