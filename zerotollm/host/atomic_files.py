"""Files that are whole or not there, and files that others may change."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from zerotollm.errors import RunError


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file holds either all of the new content or what it held before, also after a crash.

    Missing folders are made. Raises RunError where the disk is full or read-only.
    """
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
    """The one line for a disk that takes no more."""
    return RunError(
        f"cannot write {path}: {error.strerror or error}; what was saved before is untouched: "
        "make room or choose another place, then run the same command again"
    )


Stamp = tuple[int, int, int] | None
"""Size, time of the last change in nanoseconds, and inode of a file; None where it is not there."""


def stamp(path: Path) -> Stamp:
    """What is another when a file is changed or replaced."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns, about.st_ino


def stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Those of several files, for `check_unchanged`."""
    return {path: stamp(path) for path in paths}


def check_unchanged(before: dict[Path, Stamp]) -> None:
    """Raises RunError where a file is no longer as it was: what was read of it before and after does not agree."""
    for path, then in before.items():
        if stamp(path) != then:
            raise changed(path)


def changed(path: Path) -> RunError:
    """The one line for a file that another program writes."""
    return RunError(
        f"{path} was changed while it was read: run the same command again when it stays as it is"
    )
