"""Atomic writes, and detection of files that change while they are read."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from zerotollm.errors import RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that after a crash holds all of the new content or what it held before, or raise RunError."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the error for a failed write."""
    return RunError(
        f"cannot write {path}: {error.strerror or error}; what was saved before is untouched: "
        "make room or choose another place, then run the same command again"
    )


Stamp = tuple[int, int, int] | None
"""Size, time of the last change in nanoseconds, and inode of a file; None if it does not exist."""


def stamp(path: Path) -> Stamp:
    """Return a value that differs after a file is changed or replaced."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Return the stamps of several files, for `check_unchanged`."""
    return {path: stamp(path) for path in paths}


def check_unchanged(before: dict[Path, Stamp]) -> None:
    """Raise RunError if a file has changed since: data read before and after would not agree."""
    for path, earlier in before.items():
        if stamp(path) != earlier:
            raise changed(path)


def changed(path: Path) -> RunError:
    """Return the error for a file that another program writes."""
    return RunError(f"{path} was changed while it was read: run the same command again when it is complete")
