"""Read and write TFDS data sets in array_record files, without TensorFlow and without TFDS's output.

Importing tensorflow_datasets takes 0.5 s. A start from cached tokens reads no document, so the import is deferred.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from absl import logging

from zerotollm.data.sources.documents import Document
from zerotollm.errors import RunError
from zerotollm.host.atomic_files import Stamp, stamp


def write_documents(folder: Path, splits: Mapping[str, Sequence[Document]]) -> Path:
    """Write the documents as a TFDS data set below `folder` and return the data set's directory.

    Raises OSError if the disk is full or not writable.
    """
    from zerotollm.data.sources.tfds_builder import Documents

    try:
        with quiet():
            builder = Documents(splits, folder)
            builder.download_and_prepare()
    except RuntimeError as error:  # array_record's error for a full disk
        raise OSError(str(error).split(";")[0]) from error
    return Path(builder.data_dir)


def read_example(dataset: Path, split: str, index: int, *, prepared: Path) -> dict[str, Any]:
    """Return one example of a data set (the directory with dataset_info.json).

    Raises RunError if its files are damaged. The message names `prepared`, the folder to delete.
    """
    try:
        return open_split(dataset, split, stamp(dataset))[index]
    except (OSError, ValueError, RuntimeError) as error:  # array_record raises RuntimeError for most
        reason = str(error).splitlines()[0]
        raise damaged(prepared, f" ({reason})") from error


def damaged(prepared: Path, reason: str = "") -> RunError:
    """Return the error for a folder of prepared data that cannot be read."""
    return RunError(f"prepared data in {prepared} is damaged{reason}; delete that folder and run again")


@lru_cache(maxsize=16)
def open_split(dataset: Path, split: str, stamp: Stamp) -> Sequence[dict[str, Any]]:
    """Return the examples of a split. `stamp` changes when the data set is replaced."""
    import tensorflow_datasets as tfds

    with quiet():
        return tfds.builder_from_directory(dataset).as_data_source(split)


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
