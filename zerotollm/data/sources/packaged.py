"""Corpora that lie prepared in TFDS's array_record files: the packaged ones, and the reading of any."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from zerotollm.data.cache_folder import build_once, data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.sources.documents import SPLITS, Corpus, Document, LazyDocuments
from zerotollm.errors import RunError
from zerotollm.host.atomic_files import Stamp, stamp

LAYOUT = 1
"""To be raised with every change to what is made of the packages, so that all data is prepared anew."""


def open_packaged(config: DataConfig, *, builder: str, builder_config: str, distribution: str) -> Corpus:
    """The corpus that a builder of `builders.py` makes out of an installed distribution, prepared at the
    first call; later ones read some bytes and import nothing heavy. Raises RunError where the data directory
    cannot be written or holds damaged data."""
    version = importlib.metadata.version(distribution)
    folder = data_directory(config) / "corpora" / f"{config.corpus}-{version}-layout{LAYOUT}"
    fingerprint, splits = prepare_packaged(folder, builder, builder_config)
    return Corpus(config.corpus, fingerprint, splits)


def prepare_packaged(
    folder: Path, builder: str, builder_config: str
) -> tuple[str, dict[str, Sequence[Document]]]:
    """Fingerprint and documents of what a builder of `builders.py` makes, prepared in `folder` unless it is there."""
    build_once(folder, lambda temporary: _build(temporary, builder, builder_config))
    dataset, counts, fingerprint = _read_summary(folder / "summary.json")
    splits = {
        split: LazyDocuments(
            counts[split], lambda index, split=split: _document(folder, dataset, split, index)
        )
        for split in SPLITS
    }
    return fingerprint, splits


def _build(folder: Path, builder_name: str, builder_config: str) -> None:
    from zerotollm.data.sources import tfds_builders

    try:
        with quiet():
            builder = tfds_builders.make(builder_name, builder_config, folder)
            builder.download_and_prepare()
    except RuntimeError as error:  # so array_record reports a disk that is full
        raise OSError(str(error).split(";")[0]) from error
    dataset = str(Path(builder.data_dir).relative_to(folder))
    # Reading all of it back proves the files and is the one honest source of the fingerprint.
    content, counts = hashlib.sha256(), {}
    for split in SPLITS:
        counts[split] = len(_data_source(folder / dataset, split, stamp(folder / dataset)))
        for index in range(counts[split]):
            document = _document(folder, dataset, split, index)
            content.update(json.dumps([split, document.id, document.text, document.metadata]).encode())
    _data_source.cache_clear()  # the files are about to move
    summary = {"dataset": dataset, "counts": counts, "fingerprint": content.hexdigest()}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")


def _read_summary(path: Path) -> tuple[str, dict[str, int], str]:
    try:
        summary = json.loads(path.read_text("utf-8"))
        return summary["dataset"], summary["counts"], summary["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"prepared data in {path.parent} is damaged; delete that folder and run again"
        ) from error


def _document(folder: Path, dataset: str, split: str, index: int) -> Document:
    example = read_example(folder / dataset, split, index, whole=folder)
    values = {name: plain(value) for name, value in example.items()}
    return Document(values.pop("id"), values.pop("text"), values)


def plain(value) -> str | int:
    """A value of a TFDS example as Python's: bytes are UTF-8 text."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else int(value)


def read_example(dataset: Path, split: str, index: int, *, whole: Path) -> dict:
    """One example of a prepared data set (the directory with dataset_info.json). Raises RunError if the files
    are damaged, naming `whole`, the folder that is prepared at once."""
    try:
        return _data_source(dataset, split, stamp(dataset))[index]
    except (OSError, ValueError, RuntimeError) as error:  # array_record raises RuntimeError for most
        reason = str(error).splitlines()[0]
        raise RunError(
            f"prepared data in {whole} is damaged ({reason}); delete that folder and run again"
        ) from error


@lru_cache(maxsize=16)
def _data_source(dataset: Path, split: str, stamp: Stamp):
    import tensorflow_datasets as tfds

    with quiet():
        return tfds.builder_from_directory(dataset).as_data_source(split)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TFDS greets on standard output, draws bars on standard error, warns through absl: not during this."""
    from absl import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
