"""Files that are whole or not there."""

import os
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
