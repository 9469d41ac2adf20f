"""The user's own text: a path, a folder or a glob of files, see `texts.py` for their formats.

Every record (a line of .jsonl, a row of .parquet) is a document: its `text` field, or `data.field`. A text file is one
document, or each of its parts between blank lines ("paragraph"). "auto" cuts a single file only if that yields at least
20 paragraphs of 1,000 bytes on average: those are texts of their own (stories, articles). Shorter ones (speeches of a
play) need their neighbours.

Splits: 20 or more documents are split by a hash of their text, so a document keeps its split when files are added,
and equal texts share a split. Fewer are each cut by position: first train, then validation, then test. With
validation_fraction 0.1 and test_fraction 0, validation is exactly text[floor(0.9 * len(text)):] in characters.

Text is UTF-8 without a byte order mark, and every line end (see `lines.py`) becomes "\\n". Documents without a visible
character are left out. Documents are read from the files when accessed.
"""

from array import array
from pathlib import Path

import numpy as np

from zerotollm.data.config import DataConfig
from zerotollm.data.find import find_files, has_suffix
from zerotollm.data.lazy_sequence import LazySequence
from zerotollm.data.overlap import find_overlap, log_findings
from zerotollm.data.sources.documents import SPLITS, Corpus, Document
from zerotollm.data.sources.faults import FaultCount
from zerotollm.data.sources.lines import ends_in_cr
from zerotollm.data.sources.markup import front_matter_size
from zerotollm.data.sources.records import FIELDS, Span, choose_field, fields_of, has_records
from zerotollm.data.sources.splits import FEW, file_digest, fingerprint, fractions, hash64, split_by_hash
from zerotollm.data.sources.text_index import TextIndex, indexed, noted
from zerotollm.data.sources.texts import Reading, is_whole, read_text, scan_parts, scan_texts
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import changed, check_unchanged, stamp, stamps

LONG_PARAGRAPH = 1000  # bytes; paragraphs this long on average are documents of their own


def open_files(config: DataConfig) -> Corpus[Document]:
    """Return the corpus in the files that `config.corpus` names. All of them are read, to check and to hash them.

    Raises UsageError, naming the place, for what is not text; RunError, also later, if a file was changed since.
    """
    validation, test = fractions(config)
    paths = find_files(config.corpus)
    before = stamps(paths.values())
    field = text_field_of(config, paths)
    mode = config.documents
    if mode == "auto":
        mode = "paragraph" if len(paths) == 1 and _has_long_paragraphs(config, *paths.values()) else "file"
    reading = Reading(config.ratio, field or FIELDS[0], mode)
    file_N, spans_N3, hash_N, files, _ = indexed(
        config, paths, reading, lambda: _scan(config, paths, reading)
    )
    count = len(hash_N)
    if not count:
        raise UsageError(f"{config.corpus} is empty: it holds no text")
    names = list(paths)

    def load(row: int) -> Document:
        name, span = names[file_N[row]], Span(*spans_N3[row].tolist())
        path = paths[name]
        try:
            text = read_text(path, reading, span)
        except UsageError:
            if stamp(path) in (None, before[path]):
                raise
            raise changed(path) from None
        if hash64(text) != hash_N[row]:
            raise changed(path)
        document_id = name if is_whole(path, mode) else f"{name}:{span.line}"
        return Document(document_id, text, {"file": name, "line": span.line})

    check_unchanged(before)  # otherwise the digests may be of another text than the spans
    if count < FEW:
        splits = _split_by_position(config, [load(row) for row in range(count)])
    else:
        splits = {
            split: LazySequence(len(row_M), lambda index, row_M=row_M: load(row_M[index]))
            for split, row_M in split_by_hash(config, hash_N).items()
        }
    # Equal texts share a split, nearly equal ones may not.
    findings = noted(config, paths, reading, lambda: find_overlap(splits, lambda document: document.text))
    log_findings(config.corpus, findings)
    description = [mode, count < FEW, str(validation), str(test), files]
    return Corpus(config.corpus, fingerprint(description), splits)


def text_field_of(config: DataConfig, paths: dict[str, Path]) -> str:
    """Return the field that holds the text of records: `config.field`, or the first of `FIELDS` that is there.

    Returns "" if no file has records. Raises UsageError, naming the fields, if the first such file has none of them.
    """
    for path in filter(has_records, paths.values()):
        if not (names := fields_of(path, config.ratio)):
            continue  # it is empty, or broken from its first line on: reading it says so
        return choose_field(config, str(path), names)
    return ""


def _changes(path: Path, reading: Reading) -> list[str]:
    """Return what else decides the text of a file. Empty for most, so that the tokens cached for them stay valid."""
    if has_records(path):
        return [] if reading.field == FIELDS[0] else [f"field {reading.field}"]
    if has_suffix(path.name, (".html", ".epub")):
        return []
    front = has_suffix(path.name, (".md",)) and front_matter_size(path, reading.ratio)
    return ["\r"] * ends_in_cr(path, reading.ratio) + ["no front matter"] * bool(front)


def _has_long_paragraphs(config: DataConfig, path: Path) -> bool:
    if has_records(path):
        return True
    if is_whole(path, "paragraph"):
        return False
    sizes = [span.stop - span.start for span, _ in scan_parts(path, Reading(config.ratio, mode="paragraph"))]
    return len(sizes) >= FEW and sum(sizes) >= LONG_PARAGRAPH * len(sizes)


def _scan(config: DataConfig, paths: dict[str, Path], reading: Reading) -> TextIndex:
    """Return file number, span and hash of every document, as arrays: millions of documents fit into memory."""
    files, spans, hashes = array("q"), array("q"), array("Q")
    faults = FaultCount(config)
    for number, path in enumerate(paths.values()):
        for span, text in scan_texts(path, reading):
            faults.add(text)
            if isinstance(text, str) and text and not text.isspace():
                files.append(number)
                spans.extend(span)
                hashes.append(hash64(text))
    faults.check()
    return TextIndex(
        np.frombuffer(files, np.int64),
        np.frombuffer(spans, np.int64).reshape(-1, 3),
        np.frombuffer(hashes, np.uint64),
        [[name, file_digest(path), *_changes(path, reading)] for name, path in paths.items()],
        complete=not faults.number,
    )


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
