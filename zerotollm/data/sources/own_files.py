"""The user's own text: a path, a folder or a glob of .txt, .md and .jsonl files, each also .gz.

In .jsonl, every line is a document: its `text` field. A text file is one document, or each of its parts between blank
lines ("paragraph"). "auto" cuts a single file only if that yields at least 20 paragraphs of 1,000 bytes on average:
those are texts of their own (stories, articles). Shorter ones (speeches of a play) need their neighbours.

Splits: 20 or more documents are split by a hash of their text, so a document keeps its split when files are added,
and equal texts share a split. Fewer are each cut by position: first train, then validation, then test. With
validation_fraction 0.1 and test_fraction 0, validation is exactly text[floor(0.9 * len(text)):] in characters.

Text is UTF-8 without a byte order mark, and every line end (see `lines.py`) becomes "\\n". Documents without a visible
character are left out. Documents are read from the files when accessed.
"""

import codecs
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zerotollm.data.config import DataConfig
from zerotollm.data.find import find_files, has_suffix
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.data.overlap import log_overlap
from zerotollm.data.sources.documents import SPLITS, Corpus, Document
from zerotollm.data.sources.lines import (
    binary_lines,
    cannot_read,
    decoded,
    ends_in_cr,
    is_gzip,
    read_record,
    text_field,
    unix_ends,
)
from zerotollm.data.sources.splits import FEW, file_digest, fingerprint, fractions, hash64, split_by_hash
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import Stamp, changed, check_unchanged, stamp, stamps

LONG_PARAGRAPH = 1000  # bytes; paragraphs this long on average are documents of their own


class _Span(NamedTuple):
    """Where a document lies: bytes start to stop of a file's content, from a line counted from 1."""

    start: int
    stop: int
    line: int


def open_files(config: DataConfig) -> Corpus[Document]:
    """Return the corpus in the files that `config.corpus` names. All of them are read, to check and to hash them.

    Raises UsageError, naming the place, for what is not text; RunError, also later, if a file was changed since.
    """
    validation, test = fractions(config)
    paths = find_files(config.corpus)
    before = stamps(paths.values())
    mode = config.documents
    if mode == "auto":
        mode = "paragraph" if len(paths) == 1 and _has_long_paragraphs(*paths.values()) else "file"
    file_N, spans_N3, hash_N = _scan(paths, mode)
    count = len(hash_N)
    if not count:
        raise UsageError(f"{config.corpus} is empty: it holds no text")
    names = list(paths)

    def load(row: int) -> Document:
        name, span = names[file_N[row]], _Span(*spans_N3[row].tolist())
        path = paths[name]
        try:
            text = _read(path, mode, span)
        except UsageError:
            if stamp(path) in (None, before[path]):
                raise
            raise changed(path) from None
        if hash64(text) != hash_N[row]:
            raise changed(path)
        is_whole_file = mode == "file" and not _is_jsonl(path)
        document_id = name if is_whole_file else f"{name}:{span.line}"
        return Document(document_id, text, {"file": name, "line": span.line})

    files = [[n, file_digest(p), *(["\r"] if ends_in_cr(p) else [])] for n, p in paths.items()]
    check_unchanged(before)  # otherwise the digests may be of another text than the spans
    if count < FEW:
        splits = _split_by_position(config, [load(row) for row in range(count)])
    else:
        splits = {
            split: LazySequence(len(row_M), lambda index, row_M=row_M: load(row_M[index]))
            for split, row_M in split_by_hash(config, hash_N).items()
        }
    # Equal texts share a split, nearly equal ones may not.
    log_overlap(config.corpus, splits, lambda document: document.text)
    description = [mode, count < FEW, str(validation), str(test), files]
    return Corpus(config.corpus, fingerprint(description), splits)


def _is_jsonl(path: Path) -> bool:
    return has_suffix(path.name, (".jsonl",))


def _has_long_paragraphs(path: Path) -> bool:
    if _is_jsonl(path):
        return True
    sizes = [span.stop - span.start for span, _ in _spans(path, "paragraph")]
    return len(sizes) >= FEW and sum(sizes) >= LONG_PARAGRAPH * len(sizes)


def _spans(path: Path, mode: str) -> Iterator[tuple[_Span, bytes]]:
    """Yield every document's span in a file, and its bytes."""
    start, first, lines = 0, (0, 1), []
    for number, line in enumerate(binary_lines(path), 1):
        if _is_jsonl(path):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield _Span(start, start + len(line), number), line
        elif mode == "paragraph" and not line.strip():
            if lines:
                yield _Span(first[0], start, first[1]), b"".join(lines)
            lines = []
        else:
            if not lines:
                first = (start, number)
            lines.append(line)
        start += len(line)
    if lines:
        yield _Span(first[0], start, first[1]), b"".join(lines)


def _text(path: Path, mode: str, span: _Span, content: bytes) -> str:
    text = decoded(path, span.start, content)
    if _is_jsonl(path):
        place = f"{path}, line {span.line}"
        return text_field(place, read_record(place, text), "text", may_be_blank=True).replace("\r\n", "\n")
    text = unix_ends(text)
    return text.strip("\n") if mode == "paragraph" else text


def _scan(paths: dict[str, Path], mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return file number, span and hash of every document, as arrays: millions of documents fit into memory."""
    files, spans, hashes = [], [], []
    for number, path in enumerate(paths.values()):
        rows, row_hashes = [], []
        for span, content in _spans(path, mode):
            text = _text(path, mode, span, content)
            if text and not text.isspace():
                rows.append(span)
                row_hashes.append(hash64(text))
        files.append(np.full(len(rows), number))
        spans.append(np.array(rows, np.int64).reshape(-1, 3))
        hashes.append(np.array(row_hashes, np.uint64))
    return np.concatenate(files), np.concatenate(spans), np.concatenate(hashes)


def _read(path: Path, mode: str, span: _Span) -> str:
    try:
        if is_gzip(path):  # has no random access
            content = _decompressed(path, stamp(path))[span.start : span.stop]
        else:
            with path.open("rb") as file:
                file.seek(span.start)
                content = file.read(span.stop - span.start)
    except OSError as error:
        raise cannot_read(path, error) from error
    return _text(path, mode, span, content)


@lru_cache(maxsize=1)
def _decompressed(path: Path, stamp: Stamp) -> bytes:
    return b"".join(binary_lines(path))


def _split_by_position(config: DataConfig, documents: list[Document]) -> dict[str, list[Document]]:
    validation, test = fractions(config)
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        length = len(document.text)
        ends = [int((1 - validation - test) * length), int((1 - test) * length), length]
        for split, start, end in zip(SPLITS, [0, *ends], ends, strict=False):
            if start < end:
                metadata = {**document.metadata, "first_character": start}
                splits[split].append(Document(document.id, document.text[start:end], metadata))
    for split in ("train", "validation"):
        if not splits[split]:
            size = sum(len(document.text) for document in documents)
            message = f"{config.corpus} is too short: none of its {size} characters is left for {split}"
            raise UsageError(message)
    return splits
