"""Where the documents of large files lie, and their hashes: found once, and kept below data.dir until a file changes.

A later start, and a second process that prepares the same text, need not read the files again.
"""

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig
from zerotollm.data.sources.splits import fingerprint
from zerotollm.data.sources.texts import Reading
from zerotollm.errors import RunError
from zerotollm.host.atomic_files import write_atomically

FORMAT = 1  # raise it when files are read differently
LARGE = 16_000_000  # bytes of files from which on it is kept


class TextIndex(NamedTuple):
    """The documents of all files, in order."""

    file_N: np.ndarray  # int64: number of the file
    spans_N3: np.ndarray  # int64: `records.Span`
    hash_N: np.ndarray  # uint64: `hash64` of the text
    files: list[list[str]]  # name, digest, and what else decides the text of each file
    complete: bool = True  # no broken rows were left out


def indexed(
    config: DataConfig, paths: Mapping[str, Path], reading: Reading, scan: Callable[[], TextIndex]
) -> TextIndex:
    """Return `scan()`, or what an earlier one found in the same files."""
    path = _path(config, paths, reading, "npz")
    if path is None:
        return scan()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            files = json.loads(str(arrays["files"]))
            return TextIndex(arrays["file_N"], arrays["spans_N3"], arrays["hash_N"], files)
    except (OSError, ValueError, KeyError, BadZipFile):
        index = scan()
    if index.complete:
        content = io.BytesIO()
        files = np.array(json.dumps(index.files))
        np.savez(content, file_N=index.file_N, spans_N3=index.spans_N3, hash_N=index.hash_N, files=files)
        _keep(path, content.getvalue())
    return index


def noted(
    config: DataConfig, paths: Mapping[str, Path], reading: Reading, find: Callable[[], list[str]]
) -> list[str]:
    """Return `find()`, lines about the splits of the files, or what an earlier call returned."""
    path = _path(config, paths, reading, f"{config.validation_fraction:g}-{config.test_fraction:g}.json")
    if path is None:
        return find()
    try:
        return [str(line) for line in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        lines = find()
    _keep(path, json.dumps(lines).encode())
    return lines


def _path(config: DataConfig, paths: Mapping[str, Path], reading: Reading, suffix: str) -> Path | None:
    """Return where something about these files is kept; None for small files. A changed file has another place."""
    status = {name: os.stat(path) for name, path in paths.items()}
    if sum(s.st_size for s in status.values()) < LARGE:
        return None
    # The time of the last change of an inode, unlike that of its content, cannot be set.
    files = [
        [name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev] for name, s in status.items()
    ]
    key = fingerprint([FORMAT, files, astuple(reading), config.tolerate])[:16]
    return data_directory(config) / "index" / f"{key}.{suffix}"


def _keep(path: Path, content: bytes) -> None:
    """Write a file if that is possible: without it, the next start takes longer."""
    try:
        write_atomically(path, content)
    except RunError:
        return
