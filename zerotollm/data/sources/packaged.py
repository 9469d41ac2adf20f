"""Corpora from pip packages, prepared once as array_record files below the data directory."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zerotollm.data.cache_folder import build_once, data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.sources.array_records import damaged, open_split, plain, read_example, write_documents
from zerotollm.data.sources.documents import SPLITS, Corpus, Document, LazySequence
from zerotollm.host.atomic_files import stamp

LAYOUT = 1
"""Raise it with every change to the text of packaged corpora, so that all data is prepared again."""


def open_packaged(
    config: DataConfig, name: str, version: str, read: Callable[[], Mapping[str, Sequence[Document]]]
) -> Corpus:
    """Return the corpus of `read()`, prepared at the first call below the data directory.

    Later calls read a small summary; documents are read when accessed. `name` and `version` name the folder.
    Raises RunError if the data directory cannot be written or its data is damaged.
    """
    folder = data_directory(config) / "corpora" / f"{name}-{version}-layout{LAYOUT}"
    build_once(folder, lambda temporary: _build(temporary, read()))
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        dataset, counts, fingerprint = (summary[key] for key in ("dataset", "counts", "fingerprint"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder) from error
    splits = {
        split: LazySequence(counts[split], lambda index, split=split: _load(folder, dataset, split, index))
        for split in SPLITS
    }
    return Corpus(config.corpus, fingerprint, splits)


def _build(folder: Path, splits: Mapping[str, Sequence[Document]]) -> None:
    path = write_documents(folder, splits)
    dataset = str(path.relative_to(folder))
    # Reading everything back checks the files; the fingerprint is of what they hold.
    content, counts = hashlib.sha256(), {}
    for split in SPLITS:
        counts[split] = len(open_split(path, split, stamp(path)))
        for index in range(counts[split]):
            document = _load(folder, dataset, split, index)
            content.update(json.dumps([split, document.id, document.text, document.metadata]).encode())
    open_split.cache_clear()  # the files are about to move
    summary = {"dataset": dataset, "counts": counts, "fingerprint": content.hexdigest()}
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")


def _load(folder: Path, dataset: str, split: str, index: int) -> Document:
    example = read_example(folder / dataset, split, index, prepared=folder)
    values = {name: plain(value) for name, value in example.items()}
    return Document(str(values.pop("id")), str(values.pop("text")), values)
