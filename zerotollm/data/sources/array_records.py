"""Read TFDS data sets in array_record files, without TensorFlow and without the output of TFDS."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from absl import logging

from zerotollm.errors import RunError
from zerotollm.host.atomic_files import Stamp, stamp


def read_example(dataset: Path, split: str, index: int) -> dict[str, Any]:
    """Return one example of a data set (the directory with dataset_info.json).

    Raises RunError if its files are damaged.
    """
    try:
        return _open_split(dataset, split, stamp(dataset))[index]
    except (OSError, ValueError, RuntimeError) as error:  # array_record raises RuntimeError for most
        reason = str(error).splitlines()[0]
        raise RunError(
            f"prepared data in {dataset} is damaged ({reason}); delete that folder and run again"
        ) from error


@lru_cache(maxsize=16)
def _open_split(dataset: Path, split: str, stamp: Stamp) -> Sequence[dict[str, Any]]:
    """Return the examples of a split. `stamp` changes when the data set is replaced."""
    import tensorflow_datasets as tfds  # takes 0.5 s, and a start from cached tokens reads no example

    with quiet():
        # `tfds.builder_from_directory`, whose type its module hides
        return tfds.core.read_only_builder.builder_from_directory(dataset).as_data_source(split)


def plain(value: Any) -> str | int:
    """Return a value of a TFDS example as a Python value. Bytes are UTF-8 text."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else int(value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence TFDS: its greeting on stdout, progress bars on stderr, warnings through absl."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
