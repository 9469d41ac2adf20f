"""Corpora from optional pip packages, read as files and without importing them, then kept as JSON below data.dir."""

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from zerotollm.data.cache_folder import build_once, data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.data.sources.documents import SPLITS, Corpus, Document
from zerotollm.errors import RunError, UsageError
from zerotollm.host.atomic_files import Stamp, stamp

LAYOUT = 2  # raise it when the files or the text of packaged corpora change


class Package(NamedTuple):
    """An importable name and the command that installs it."""

    module: str
    install: str

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.module)

    @property
    def folder(self) -> Path:
        """The directory of the package's files. Raises ModuleNotFoundError if it is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(self.module)
        return Path(spec.submodule_search_locations[0])

    def check_installed(self, corpus: str) -> None:
        """Raise UsageError with the install command if the package of `corpus` is missing."""
        if not self.is_installed:
            raise UsageError(f"{corpus} is not installed; install it with: {self.install}")


def open_packaged(
    config: DataConfig, name: str, version: str, read: Callable[[], Mapping[str, Sequence[Document]]]
) -> Corpus[Document]:
    """Return the corpus of `read()`, which is called only once for every `name` and `version`.

    Later calls read a small summary, and all documents when the first one is accessed. Raises RunError if the data
    directory cannot be written or its data is damaged.
    """
    folder = data_directory(config) / "corpora" / f"{name}-{version}-layout{LAYOUT}"
    build_once(folder, lambda temporary: _write(temporary, read()))
    path = folder / "documents.json"
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        counts, fingerprint = summary["counts"], summary["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder) from error
    splits = {
        split: LazySequence(counts[split], lambda i, split=split: _documents(path, stamp(path))[split][i])
        for split in SPLITS
    }
    return Corpus(config.corpus, fingerprint, splits)


def _write(folder: Path, splits: Mapping[str, Sequence[Document]]) -> None:
    # The fingerprint, which names the folders of tokens, needs one order of the metadata.
    rows = {
        split: [(d.id, d.text, dict(sorted(d.metadata.items()))) for d in documents]
        for split, documents in splits.items()
    }
    content = hashlib.sha256()
    for split in SPLITS:
        for row in rows[split]:
            content.update(json.dumps([split, *row]).encode())
    summary = {"counts": {split: len(rows[split]) for split in SPLITS}, "fingerprint": content.hexdigest()}
    (folder / "documents.json").write_text(json.dumps(rows), "utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")


@lru_cache(maxsize=4)
def _documents(path: Path, stamp: Stamp) -> dict[str, list[Document]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path.parent) from error
    return {split: [Document(*row) for row in rows[split]] for split in SPLITS}


def _damaged(folder: Path) -> RunError:
    return RunError(f"prepared data in {folder} is damaged; delete that folder and run again")
