"""The cache of token arrays: prepared once for a corpus and a tokenizer, then mapped from disk.

A folder `tokens/NAME-KEY` under the data directory holds `tokenizer.model`, the arrays of each split, and a manifest.
KEY is a hash of the corpus's fingerprint and the tokenizer's settings: experiments that agree in both share the
folder, and a changed text gets a new one. A folder is complete or absent.
"""

import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from zerotollm.data.cache_folder import build_once, data_directory
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, SpecialIds, load_tokenizer, tokenizer_for
from zerotollm.errors import RunError
from zerotollm.host.file_lock import lock
from zerotollm.types import Json

CHECKED = 64_000_000  # bytes; of larger files only the size is checked at a start
MANIFEST = "manifest"  # its first line is the checksum of its second
TOKENIZER = "tokenizer.model"

Split = TypeVar("Split")


@dataclass
class Counts:
    """Counts per split, kept in the manifest."""

    num_bytes: dict[str, int] = field(default_factory=dict)  # UTF-8 bytes of text that decoding returns
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    own: int | None = None  # training pairs of the corpus itself, before those of `data.extra`
    lost: dict[str, int] = field(default_factory=dict)  # UTF-8 bytes that decoding does not return


@dataclass(frozen=True)
class Prepared(Generic[Split]):
    """A corpus as tokens."""

    corpus: str
    tokenizer: AnyTokenizer
    splits: dict[str, Split]  # train, validation, test; a split without text has no tokens
    counts: Counts
    labels: tuple[str, ...] = ()

    def lost_shares(self, decoded: Mapping[str, int]) -> dict[str, float]:
        """Return the share of bytes that decoding does not return, for splits that have some."""
        return {name: lost / (lost + decoded[name]) for name, lost in self.counts.lost.items() if lost}


@dataclass(frozen=True)
class TokenCache:
    """A complete folder of token arrays."""

    folder: Path
    dtype: str
    counts: Counts
    tokenizer: AnyTokenizer

    def tokens(self, name: str) -> np.ndarray:
        """Return the ids in the file NAME.tokens, mapped from disk."""
        return self.array(f"{name}.tokens", self.dtype)

    def array(self, name: str, dtype: str = "<i8") -> np.ndarray:
        """Return a file as an array that is read from disk where it is used."""
        path = self.folder / name
        if not path.stat().st_size:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, mode="r").view(np.ndarray)  # numpy's memmap class is slow to index

    @property
    def special(self) -> SpecialIds:
        return SpecialIds.of(self.tokenizer)


def open_cache(
    folder: Path,
    tokenizer: TokenizerConfig | AnyTokenizer,
    texts: Callable[[], Iterable[str]],
    write: Callable[[Path, AnyTokenizer], Counts],
) -> TokenCache:
    """Return the arrays in `folder`, built first if they are missing or damaged.

    `texts()` is what a tokenizer is trained on, unless one is given. `write(temporary folder, tokenizer)` writes the
    arrays and returns their counts. Raises RunError if the folder cannot be written.
    """

    def build(temporary: Path) -> None:
        trained = tokenizer_for(tokenizer, texts())
        write_manifest(temporary, trained, write(temporary, trained))

    if not is_intact(folder):
        discard(folder)
        build_once(folder, build)
    manifest = _read_manifest(folder)
    counts = Counts(**{name: manifest[name] for name in vars(Counts()) if name in manifest})
    return TokenCache(folder, manifest["dtype"], counts, load_tokenizer(folder / TOKENIZER))


def token_folder(data: DataConfig, corpus: str, key: Sequence[object]) -> Path:
    """Return the folder for the tokens of a corpus. `key` is JSON that distinguishes them from all others."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(corpus).name)[-40:].strip(".-")
    return data_directory(data) / "tokens" / f"{name or 'corpus'}-{digest}"


def token_type(tokenizer: AnyTokenizer) -> np.dtype:
    """Return the type of ids on disk."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def write_manifest(folder: Path, tokenizer: AnyTokenizer, counts: Counts) -> None:
    """Write the tokenizer and, last of all files, the manifest, which has the checksums of the others."""
    tokenizer.save(folder / TOKENIZER)
    files = {path.name: [path.stat().st_size, checksum(path)] for path in sorted(folder.iterdir())}
    used = {name: count for name, count in vars(counts).items() if count not in ({}, None)}
    content = json.dumps({"dtype": token_type(tokenizer).str, **used, "files": files}).encode()
    (folder / MANIFEST).write_bytes(b"%d\n%s\n" % (zlib.crc32(content), content))


def _read_manifest(folder: Path) -> Json:
    """Raises OSError if there is none, ValueError if it is damaged."""
    checksum_line, content = (folder / MANIFEST).read_bytes().split(b"\n", 1)
    if zlib.crc32(content.strip()) != int(checksum_line):
        raise ValueError(f"{folder / MANIFEST} is damaged")
    return json.loads(content)


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def is_intact(folder: Path) -> bool:
    """Return whether all files have the sizes, and if they are small the content, that were written."""
    try:
        return all(
            (folder / name).stat().st_size == size and (size > CHECKED or checksum(folder / name) == expected)
            for name, (size, expected) in _read_manifest(folder)["files"].items()
        )
    except (OSError, ValueError):
        return False


def discard(folder: Path) -> None:
    """Remove a damaged folder, under the lock of `build_once` so that a folder just rebuilt is not removed."""
    if not folder.exists():
        return
    try:
        with exclusive_lock(folder.with_name(f".{folder.name}.lock")):
            if folder.exists() and not is_intact(folder):
                shutil.rmtree(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{folder} is damaged and cannot be removed ({reason}): delete it by hand") from error


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a file for the block. Yields False if another process holds the lock and `wait` is False.

    Yields True on a file system without locks: callers do work that is harmless if two processes do it.
    """
    with path.open("w") as file:
        free = True
        with suppress(OSError):
            free = lock(file, wait=wait)
        yield free
