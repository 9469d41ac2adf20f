"""The folder of prepared data, and directories that are either complete or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from zerotollm.data.config import DataConfig
from zerotollm.errors import RunError
from zerotollm.host.file_lock import lock


def data_directory(config: DataConfig) -> Path:
    """Return the folder of prepared data, tokenizers and tokens, which may not exist yet."""
    folder = config.dir or os.environ.get("ZEROTOLLM_DATA", "") or "~/.cache/zerotollm"
    return Path(folder).expanduser()


def build_once(final: Path, build: Callable[[Path], None]) -> None:
    """Make the directory `final` with `build(temporary directory)`, unless it exists.

    The temporary directory is renamed when complete, so a killed process leaves `final` complete or absent. One of
    several processes builds while the others wait for its lock. Raises RunError if `final` cannot be written.
    """
    if os.path.isdir(final):  # Path.is_dir raises where permission is denied
        return
    temporary = final.with_name(f".{final.name}.incomplete")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(final.with_name(f".{final.name}.lock"), "w") as lock_file:
            lock(lock_file)
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
    reason = error.strerror or str(error).splitlines()[0]
    return RunError(
        f"cannot prepare {final}: {reason}; free or allow space there, or choose another folder with "
        "--data.dir or $ZEROTOLLM_DATA"
    )
