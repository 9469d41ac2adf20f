"""Texts of which a part is learned: a completion of its prompt, answers in a conversation, the label of a text.

The corpus of a completion (`train.objective completion`) is written

chitchat             conversations out of a package, see `chitchat.py`
my.jsonl             a line is {"prompt": ..., "completion": ...} or {"messages": [{"role": ..., "content": ...}, ...]};
                     files, a folder or a glob, each also .gz
bible-wyc:bible-web  and every other corpus of pairs, see `parallel.py`: source, line end, target

and that of labels (`train.objective label`)

my.jsonl             a line is {"text": ..., "label": ...}; files, a folder or a glob, each also .gz
genre:bible-web      passages of a version of the Bible (several: A+B), and the kind of book that they are from
version:bible-web+bible-kjv+bible-ylt   passages, and which of the versions they are from

Own files are split by a hash of what they hold, unless `data.validation` (and `data.test`) name files for it. Of the
Bible the same chapters are held out as everywhere, see `zerotollm.data.sources.bible`.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from zerotollm.data.config import DataConfig, is_file, names_pairs
from zerotollm.data.find import find_files
from zerotollm.data.overlap import check_overlap
from zerotollm.data.sources import bible, chitchat
from zerotollm.data.sources.conversations import Part, Sentence, chat_parts, check_messages
from zerotollm.data.sources.documents import SPLITS
from zerotollm.data.sources.lines import check_encodable, read_lines, read_records
from zerotollm.data.sources.own_files import FEW, fractions, split_by_hash
from zerotollm.data.sources.pairs import as_sentence, kept, translation_prompt
from zerotollm.data.sources.parallel import check_versions, open_parallel
from zerotollm.errors import UsageError

PASSAGE = 240
"""Characters of a passage of the Bible, at least: whole verses, some 60 tokens."""


class Example(NamedTuple):
    """A text in parts, or a whole text and its label."""

    id: str
    parts: tuple[Part, ...]
    label: str = ""


@dataclass(frozen=True)
class Examples:
    """Examples in three splits. If a text, a label, an id or a split changes, so does `fingerprint`."""

    name: str
    fingerprint: str
    splits: Mapping[str, Sequence[Example]]
    labels: tuple[str, ...] = ()
    """all that there are, in alphabetical order"""
    dropped: Mapping[str, Mapping[str, int]] | None = None
    """of each split: pairs left out, by reason"""


def open_examples(config: DataConfig, objective: str) -> Examples:
    """The examples that `config.corpus` names, for the objective "completion" or "label".

    Raises UsageError, naming the file and the line, where there are none or one of them is not what it should be; for
    a label that no training example has, and where there are fewer than two.
    """
    if objective == "label":
        kind, colon, versions = config.corpus.partition(":")
        named = colon and kind in KINDS and not is_file(config.corpus)
        made = _passages(config, kind, versions) if named else _own(config, _labelled)
        return _with_labels(made)
    if config.corpus == chitchat.NAME:
        return _small_talk(config)
    return _pairs(config) if names_pairs(config.corpus) else _own(config, _completion)


# --- own files


def _own(config: DataConfig, example: Callable[[str, dict[str, Any]], Example]) -> Examples:
    validation, test = fractions(config)
    rows = list(_read(config.corpus, example))
    described: list[Any] = [[_described(row) for row in rows], str(validation), str(test)]
    if config.test and not config.validation:
        raise UsageError("data.test names files, and data.validation none: give both, or neither")
    if config.validation:
        splits = {"train": rows, "validation": list(_read(config.validation, example)), "test": []}
        if config.test:
            splits["test"] = list(_read(config.test, example))
        described += [[_described(row) for row in splits[name]] for name in SPLITS[1:]]
    else:
        if len(rows) < FEW:
            raise UsageError(
                f"{config.corpus} has {len(rows)} examples, and at least {FEW} can be split: give more, or "
                "examples to validate with as data.validation"
            )
        digests = [hashlib.sha256(json.dumps(_described(row)).encode()).digest()[:8] for row in rows]
        hash_N = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
        chosen = split_by_hash(config, hash_N, validation, test)
        splits = {split: [rows[row] for row in row_M] for split, row_M in chosen.items()}
    texts = {
        split: ["\n".join(part.text for part in row.parts) for row in split_rows]
        for split, split_rows in splits.items()
    }
    check_overlap(config.corpus, texts, named=bool(config.validation))
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return Examples(config.corpus, fingerprint, splits)


def _described(example: Example) -> list[Any]:
    return [[list(part) for part in example.parts], example.label]


def _read(corpus: str, example: Callable[[str, dict[str, Any]], Example]) -> Iterator[Example]:
    """What `example(place, record)` makes of every line; what it says is wrong is said with the place."""
    for path in find_files(corpus, (".jsonl",)).values():
        for place, record in read_records(path, read_lines(path)):
            yield example(place, record)


def _string(place: str, record: dict[str, Any], field: str) -> str:
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        held = "missing" if field not in record else "empty" if text in ("", None) else f"{text!r}"
        raise UsageError(
            f"{place}: {field!r} is {held}, and must be a text; fields: {', '.join(record) or 'none'}"
        )
    check_encodable(f"{place}, field {field!r}", text)
    return text


def _completion(place: str, record: dict[str, Any]) -> Example:
    if "messages" in record:
        return Example(place, chat_parts(check_messages(place, record["messages"])))
    prompt, completion = (_string(place, record, field) for field in ("prompt", "completion"))
    return Example(place, (Part(prompt), Part(completion, learned=True, ends=True)))


def _labelled(place: str, record: dict[str, Any]) -> Example:
    return Example(
        place, (Part(as_sentence(_string(place, record, "text"))),), _string(place, record, "label")
    )


# --- small talk, pairs, and the Bible


def _small_talk(config: DataConfig) -> Examples:
    conversations = chitchat.read_conversations()
    hash_N = np.array([chitchat.name_hash(name) for name in conversations], np.uint64)
    chosen = split_by_hash(config, hash_N, *fractions(config))
    names = list(conversations)
    splits = {
        split: [
            Example(f"{names[row]}, piece {number}", chat_parts(piece))
            for row in row_M
            for number, piece in enumerate(conversations[names[row]], 1)
        ]
        for split, row_M in chosen.items()
    }
    described = {split: [_described(example) for example in examples] for split, examples in splits.items()}
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return Examples(config.corpus, fingerprint, splits)


def _pairs(config: DataConfig) -> Examples:
    corpus = open_parallel(config)
    splits, dropped = {}, {}
    for split, pairs in corpus.splits.items():
        used, dropped[split] = kept(pairs, split)
        splits[split] = [
            Example(pair.id, (Part(translation_prompt(pair.source)), _answer(pair.target))) for pair in used
        ]
    return Examples(corpus.name, corpus.fingerprint, splits, dropped=dropped)


def _answer(target: str) -> Part:
    return Sentence(as_sentence(target), learned=True, ends=True)


KINDS = ("genre", "version")


def _passages(config: DataConfig, kind: str, versions: str) -> Examples:
    names = [name.removeprefix("bible-") for name in versions.split("+")]
    check_versions(config.corpus, names)
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for name in names:
        for (book, chapter), verses in _chapters(name).items():
            split = bible.chapter_splits().get((book, chapter), "train")
            title, _, genre = bible.BOOKS[book - 1]
            for number, passage in enumerate(_cut(verses), 1):
                label = genre if kind == "genre" else name
                splits[split].append(
                    Example(
                        f"{name} {title} {chapter}, passage {number}", (Part(as_sentence(passage)),), label
                    )
                )
    stamp = [PASSAGE, *(importlib.metadata.version(f"pythonbible-{name}") for name in names)]
    fingerprint = hashlib.sha256(json.dumps([config.corpus, stamp]).encode()).hexdigest()
    return Examples(config.corpus, fingerprint, splits)


def _chapters(version: str) -> dict[tuple[int, int], list[str]]:
    chapters: dict[tuple[int, int], list[str]] = {}
    for verse, text in bible.read_verses(version).items():
        chapters.setdefault((verse // 10**6, verse // 1000 % 1000), []).append(text)
    return chapters


def _cut(verses: Sequence[str]) -> Iterator[str]:
    """Verses side by side, as many as make a passage; a shorter rest of a chapter is left out unless it is all."""
    passages, held = [], ""
    for verse in verses:
        held = f"{held} {verse}".strip()
        if len(held) >= PASSAGE:
            passages.append(held)
            held = ""
    return iter(passages or [held])


def _with_labels(examples: Examples) -> Examples:
    labels = tuple(sorted({example.label for example in examples.splits["train"]}))
    if len(labels) < 2:
        raise UsageError(
            f"{examples.name} has one label to train on, {labels[0]!r}, and a class is told from another one"
            if labels
            else f"{examples.name} has no training example"
        )
    unseen = [
        (label, split, [example.id for example in examples.splits[split] if example.label == label])
        for split in SPLITS[1:]
        for label in sorted({example.label for example in examples.splits[split]} - set(labels))
    ]
    if unseen:
        held = ", ".join(
            f"{label!r} ({len(places):,} {split} {'examples' if len(places) > 1 else 'example'}, {places[0]})"
            for label, split, places in unseen
        )
        raise UsageError(
            f"no training example has {'these labels' if len(unseen) > 1 else 'this label'}: {held}; the model learns "
            f"{', '.join(labels)}: give each of them training examples, or take these examples out"
        )
    return Examples(examples.name, examples.fingerprint, examples.splits, labels)
