"""The user's own text: a path, a folder or a glob of .txt, .md and .jsonl files, each also .gz.

What is a document (`DataConfig.documents`):
- .jsonl: always a line, its `text` field;
- "file": a text file. "paragraph": what blank lines separate in a text file;
- "auto": a text file where there are several. A single one is cut at its blank lines only if that yields at
  least 20 paragraphs of 1,000 bytes on average: those are texts of their own (stories, articles). Shorter
  ones (speeches of a play, paragraphs of a novel) need their neighbours, so the file stays one text.

What is in which split: 20 or more documents are split by a hash of their text, so that a document stays in
its split when files are added, and equal texts lie in one split. Fewer are each cut by position: first train,
then validation, then test; of one file with validation_fraction 0.1 and test_fraction 0, validation is
exactly text[floor(0.9 * len(text)):], counted in characters.

Text is UTF-8; a byte order mark is dropped, and every line end (see `lines.py`) becomes "\\n". Nothing else is changed.
Documents without a visible character are left out. Text is read from the files when it is asked for.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from zerotollm.data.config import DataConfig
from zerotollm.data.find import find_files, has_suffix
from zerotollm.data.overlap import log_overlap
from zerotollm.data.sources.documents import Corpus, Document, LazyDocuments
from zerotollm.data.sources.lines import (
    binary_lines,
    check_encodable,
    decoded,
    ends_in_cr,
    read_json,
    unix_ends,
)
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import Stamp, changed, check_unchanged, stamp, stamps

FEW = 20
"""documents; fewer are too few for a split by hash to come near the fractions asked for"""
LONG_PARAGRAPH = 1000
"""bytes; paragraphs this long on average are documents of their own"""


@dataclass(frozen=True)
class _Place:
    """Where a document lies: bytes start to stop of a file's content, from a line counted from 1."""

    start: int
    stop: int
    line: int


def open_files(config: DataConfig) -> Corpus:
    """The corpus in the files that `config.corpus` names. All of them are read, to check and to hash them.

    Raises UsageError, naming the file and the place in it, for whatever cannot be read as text; RunError, also when a
    document is asked for later, where a file was changed since.
    """
    validation, test = fractions(config)
    paths = find_files(config.corpus)
    before = stamps(paths.values())
    mode = config.documents
    if mode == "auto":
        mode = "file" if len(paths) > 1 or not _holds_many(next(iter(paths.values()))) else "paragraph"
    file_N, start_N, stop_N, line_N, hash_N = _scan(paths, mode)
    if not len(hash_N):
        raise UsageError(f"{config.corpus} is empty: it holds no text")
    names = list(paths)

    def load(row: int) -> Document:
        name = names[file_N[row]]
        path, place = paths[name], _Place(int(start_N[row]), int(stop_N[row]), int(line_N[row]))
        try:
            text = _read(path, mode, place)
        except UsageError:
            if stamp(path) in (None, before[path]):
                raise
            raise changed(path) from None
        if _hash(text) != hash_N[row]:
            raise changed(path)
        whole = mode == "file" and not _is_jsonl(paths[name])
        return Document(
            name if whole else f"{name}:{line_N[row]}", text, {"file": name, "line": int(line_N[row])}
        )

    described = [
        mode,
        len(hash_N) < FEW,
        str(validation),
        str(test),
        [[n, _digest(p), *(["\r"] if ends_in_cr(p) else [])] for n, p in paths.items()],
    ]
    check_unchanged(before)  # else the fingerprint may be of another text than the places
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    if len(hash_N) < FEW:
        splits = _split_by_position(config, [load(row) for row in range(len(hash_N))], validation, test)
    else:
        rows = split_by_hash(config, hash_N, validation, test)
        splits = {
            split: LazyDocuments(len(row_M), lambda index, row_M=row_M: load(row_M[index]))
            for split, row_M in rows.items()
        }
    # By hash equal texts lie in one split; nearly equal ones do not.
    log_overlap(config.corpus, splits, lambda document: document.text)
    return Corpus(config.corpus, fingerprint, splits)


def fractions(config: DataConfig) -> tuple[Fraction, Fraction]:
    """(validation, test) as the decimal numbers that were written: 0.1 is a tenth, not the float nearest to
    it. Raises UsageError for fractions that leave nothing to train on or to validate with."""
    validation, test = Fraction(str(config.validation_fraction)), Fraction(str(config.test_fraction))
    if not (validation > 0 and test >= 0 and validation + test < 1):
        raise UsageError(
            f"data.validation_fraction is {config.validation_fraction} and data.test_fraction "
            f"{config.test_fraction}: the first must be above 0, the second at least 0, their sum below 1"
        )
    return validation, test


def _is_jsonl(path: Path) -> bool:
    return has_suffix(path.name, (".jsonl",))


def _places(path: Path, mode: str) -> Iterator[tuple[_Place, bytes]]:
    """Every document's place in a file, and its bytes."""
    start, place_start, place_line, held = 0, 0, 1, []
    for number, line in enumerate(binary_lines(path), 1):
        if _is_jsonl(path):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield _Place(start, start + len(line), number), line
        elif mode == "paragraph" and not line.strip():
            if held:
                yield _Place(place_start, start, place_line), b"".join(held)
            held = []
        else:
            if not held:
                place_start, place_line = start, number
            held.append(line)
        start += len(line)
    if held:
        yield _Place(place_start, start, place_line), b"".join(held)


def _text(path: Path, mode: str, place: _Place, content: bytes) -> str:
    """The text of a document out of its bytes."""
    text = decoded(path, place.start, content)
    if _is_jsonl(path):
        return _json_text(path, place.line, text)
    text = unix_ends(text)
    return text.strip("\n") if mode == "paragraph" else text


def _json_text(path: Path, line: int, content: str) -> str:
    record = read_json(f"{path}, line {line}", content)
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        held = (
            f"fields {', '.join(map(_shown, record)) or 'none'}"
            if isinstance(record, dict)
            else f"a {type(record).__name__}"
        )
        raise UsageError(f"{path}, line {line}: no text (a string in a field 'text') but {held}")
    check_encodable(f"{path}, line {line}", text)
    return text.replace("\r\n", "\n")


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _holds_many(path: Path) -> bool:
    if _is_jsonl(path):
        return True
    count = size = 0
    for place, _ in _places(path, "paragraph"):
        count, size = count + 1, size + place.stop - place.start
    return count >= FEW and size >= LONG_PARAGRAPH * count


def _scan(paths: dict[str, Path], mode: str) -> tuple[np.ndarray, ...]:
    """File, start, stop, line and hash of every document, as arrays: millions of documents fit in memory."""
    rows, hashes = [], []
    for number, path in enumerate(paths.values()):
        file_rows, file_hashes = [], []
        for place, content in _places(path, mode):
            text = _text(path, mode, place, content)
            if text and not text.isspace():
                file_rows.append((number, place.start, place.stop, place.line))
                file_hashes.append(_hash(text))
        rows.append(np.array(file_rows, dtype=np.int64).reshape(-1, 4))
        hashes.append(np.array(file_hashes, dtype=np.uint64))
    return *np.concatenate(rows).T, np.concatenate(hashes)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def _read(path: Path, mode: str, place: _Place) -> str:
    try:
        if path.name.lower().endswith(".gz"):  # cannot be entered in the middle
            content = _unpacked(path, stamp(path))[place.start : place.stop]
        else:
            with path.open("rb") as file:
                file.seek(place.start)
                content = file.read(place.stop - place.start)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    return _text(path, mode, place, content)


@lru_cache(maxsize=1)
def _unpacked(path: Path, stamp: Stamp) -> bytes:
    return b"".join(binary_lines(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_by_hash(
    config: DataConfig, hash_N: np.ndarray, validation: Fraction, test: Fraction
) -> dict[str, np.ndarray]:
    """Rows of each split. The hash of a text, as a number from 0 to 1, is compared with the fractions."""
    test_end, validation_end = (np.uint64(int(part * 2**64)) for part in (test, test + validation))
    in_test, held_out = hash_N < test_end, hash_N < validation_end
    if not (held_out & ~in_test).any():  # by bad luck; the next in line steps in
        candidates = hash_N[~held_out]
        if candidates.size:
            held_out |= hash_N == candidates.min()
    rows = {"train": ~held_out, "validation": held_out & ~in_test, "test": in_test}
    if not (rows["train"].any() and rows["validation"].any()):
        raise UsageError(
            f"{config.corpus} is too short: {len(hash_N)} documents cannot be split into train and validation"
        )
    return {split: np.flatnonzero(mask) for split, mask in rows.items()}


def _split_by_position(
    config: DataConfig, documents: list[Document], validation: Fraction, test: Fraction
) -> dict[str, list[Document]]:
    splits: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for document in documents:
        length = len(document.text)
        ends = [int((1 - validation - test) * length), int((1 - test) * length), length]
        for split, start, end in zip(splits, [0, *ends], ends, strict=False):
            if start < end:
                metadata = {**document.metadata, "first_character": start}
                splits[split].append(Document(document.id, document.text[start:end], metadata))
    for split in ("train", "validation"):
        if not splits[split]:
            size = sum(len(document.text) for document in documents)
            raise UsageError(
                f"{config.corpus} is too short: of its {size} characters none is left for {split}"
            )
    return splits
