"""Where prepared data lies, and how a directory comes to be there whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from zerotollm.data.config import DataConfig
from zerotollm.errors import RunError


def data_directory(config: DataConfig) -> Path:
    """The folder of prepared data, tokenizers and tokens; it need not exist yet."""
    chosen = config.dir or os.environ.get("ZEROTOLLM_DATA", "") or "~/.cache/zerotollm"
    return Path(chosen).expanduser()


def build_once(final: Path, build: Callable[[Path], None]) -> None:
    """Makes the directory `final` with `build(temporary directory)`, unless it exists.

    The temporary directory is renamed when it is complete, so a process killed at any moment leaves `final`
    whole or absent. Of several processes one builds and the others wait: the lock dies with its holder, and
    whoever holds it may clear away what a killed one left. Raises RunError where nothing can be written.
    """
    if os.path.isdir(final):  # not Path.is_dir, which raises where one may not look
        return
    temporary = final.with_name(f".{final.name}.incomplete")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(final.with_name(f".{final.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if final.is_dir():
                return
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir()
            try:
                build(temporary)
                temporary.rename(final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise cannot_prepare(final, error) from error


def cannot_prepare(final: Path, error: OSError) -> RunError:
    """The one line for a place that takes no more."""
    reason = error.strerror or str(error).splitlines()[0]
    return RunError(
        f"cannot prepare {final}: {reason}; free or allow space there, or choose another folder with --data.dir or "
        "$ZEROTOLLM_DATA"
    )
