"""Examples: texts with a part to learn, which is a completion, the answers in a conversation, or a label.

For completions (`train.objective completion`), the corpus is one of

chitchat             conversations from a package, see `chitchat.py`
my.jsonl             one {"prompt", "completion"} or {"messages": [{"role", "content"}, ...]} per line
bible-wyc:bible-web  or any other corpus of pairs, see `parallel.py`: source, line end, target

For labels (`train.objective label`), it is one of

my.jsonl             one {"text", "label"} per line, the label a text or a whole number; a file, a folder or a glob.
                     Also .json, .csv, .tsv and .parquet with these fields; see `records.py`
genre:bible-web      passages of a version of the Bible (several: A+B), labelled with the kind of book
version:bible-web+bible-kjv+bible-ylt   passages, labelled with their version

Own files are split by a hash of each example, unless `data.validation` names files; the Bible by its chapters.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from zerotollm.data.config import DataConfig, is_file, names_pairs
from zerotollm.data.find import find_files
from zerotollm.data.overlap import check_overlap
from zerotollm.data.sources import chitchat
from zerotollm.data.sources.bible import BOOKS, split_of, verses_by_chapter
from zerotollm.data.sources.bible_pairs import package, read_verses, version_names
from zerotollm.data.sources.conversations import Part, Sentence, chat_parts, check_messages
from zerotollm.data.sources.documents import SPLITS, Corpus
from zerotollm.data.sources.faults import FaultCount
from zerotollm.data.sources.lines import Record, label_field, text_field
from zerotollm.data.sources.pairs import as_sentence, translation_prompt, usable_pairs
from zerotollm.data.sources.parallel import open_parallel
from zerotollm.data.sources.records import SUFFIXES, scan_records
from zerotollm.data.sources.splits import FEW, fingerprint, fractions, split_rows, split_rows_by_hash
from zerotollm.errors import UsageError

PASSAGE = 240  # least characters of a passage of the Bible: whole verses, about 60 tokens
FIELDS = ("prompt", "completion", "messages", "text", "label")  # that records of examples may have
BIBLE_LABELS = ("genre", "version")


class Example(NamedTuple):
    """A text in parts; for a label, a single part and the label."""

    id: str
    parts: tuple[Part, ...]
    label: str = ""


def open_examples(config: DataConfig, objective: str) -> Corpus[Example]:
    """Return the examples for the objective "completion" or "label". Raises UsageError, naming the place of a fault."""
    if objective == "label":
        kind, colon, versions = config.corpus.partition(":")
        is_bible = colon and kind in BIBLE_LABELS and not is_file(config.corpus)
        return _with_labels(
            _passages(config, kind, versions) if is_bible else _own_files(config, _labelled(config))
        )
    if config.corpus == chitchat.NAME:
        return _small_talk(config)
    return _pairs(config) if names_pairs(config.corpus) else _own_files(config, _completion)


def _own_files(config: DataConfig, make: Callable[[str, Record], Example]) -> Corpus[Example]:
    def read(corpus: str) -> list[Example]:
        faults, rows = FaultCount(config), []
        for path in find_files(corpus, SUFFIXES).values():
            for _, place, record in scan_records(path, (*FIELDS, config.field), config.ratio):
                row = record if isinstance(record, UsageError) else _made(make, place, record)
                faults.add(row)
                if isinstance(row, Example):
                    rows.append(row)
        faults.check()
        return rows

    held_out = [*map(str, fractions(config))]
    rows = read(config.corpus)
    if len(rows) < FEW and not (config.validation or config.test):
        raise UsageError(
            f"{config.corpus} has {len(rows)} examples, and a split needs at least {FEW}: give more, or name "
            "validation examples in data.validation"
        )
    splits = split_rows(config, rows, read, lambda row: json.dumps(_description(row)))
    texts = {
        split: ["\n".join(part.text for part in row.parts) for row in examples]
        for split, examples in splits.items()
    }
    check_overlap(config.corpus, texts, named=bool(config.validation))
    description = [[_description(row) for row in rows], *held_out]
    if config.validation:
        description += [[_description(row) for row in splits[split]] for split in SPLITS[1:]]
    return Corpus(config.corpus, fingerprint(description), splits)


def _made(make: Callable[[str, Record], Example], place: str, record: Record) -> Example | UsageError:
    try:
        return make(place, record)
    except UsageError as fault:
        return fault


def _description(example: Example) -> list[object]:
    return [[list(part) for part in example.parts], example.label]


def _completion(place: str, record: Record) -> Example:
    if "messages" in record:
        return Example(place, chat_parts(check_messages(place, record["messages"])))
    prompt, completion = (text_field(place, record, field) for field in ("prompt", "completion"))
    return _with_answer(place, prompt, Part(completion))


def _with_answer(place: str, prompt: str, answer: Part) -> Example:
    return Example(place, (Part(prompt), answer._replace(learned=True, ends=True)))


def _labelled(config: DataConfig) -> Callable[[str, Record], Example]:
    field = config.field or "text"

    def make(place: str, record: Record) -> Example:
        text, label = text_field(place, record, field), label_field(place, record, "label")
        return Example(place, (Part(as_sentence(text)),), label)

    return make


def _small_talk(config: DataConfig) -> Corpus[Example]:
    conversations = list(chitchat.read_conversations().items())
    splits = {
        split: [
            Example(f"{name}, piece {number}", chat_parts(piece))
            for name, pieces in rows
            for number, piece in enumerate(pieces, 1)
        ]
        for split, rows in split_rows_by_hash(config, conversations, lambda row: row[0]).items()
    }
    description = {split: [_description(example) for example in rows] for split, rows in splits.items()}
    return Corpus(config.corpus, fingerprint(description), splits)


def _pairs(config: DataConfig) -> Corpus[Example]:
    corpus = open_parallel(config)
    splits, dropped = {}, {}
    for split, pairs in corpus.splits.items():
        usable, dropped[split] = usable_pairs(pairs, split)
        splits[split] = [
            _with_answer(pair.id, translation_prompt(pair.source), Sentence(as_sentence(pair.target)))
            for pair in usable
        ]
    return Corpus(corpus.name, corpus.fingerprint, splits, dropped=dropped)


def _passages(config: DataConfig, kind: str, versions: str) -> Corpus[Example]:
    names = version_names(config.corpus, versions.split("+"))
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for name in names:
        verses = read_verses(name)
        for (book, chapter), ids in verses_by_chapter(verses).items():
            title, _, genre = BOOKS[book - 1]
            splits[split_of((book, chapter))] += [
                Example(
                    f"{name} {title} {chapter}, passage {number}",
                    (Part(as_sentence(passage)),),
                    genre if kind == "genre" else name,
                )
                for number, passage in enumerate(_cut(verses[i] for i in ids), 1)
            ]
    description = [config.corpus, [PASSAGE, *(package(name).version for name in names)]]
    return Corpus(config.corpus, fingerprint(description), splits)


def _cut(verses: Iterator[str]) -> list[str]:
    """Join the verses of a chapter into passages. A shorter rest is left out, unless it is the whole chapter."""
    passages: list[str] = []
    passage = ""
    for verse in verses:
        passage = f"{passage} {verse}".strip()
        if len(passage) >= PASSAGE:
            passages.append(passage)
            passage = ""
    return passages or [passage]


def _with_labels(examples: Corpus[Example]) -> Corpus[Example]:
    labels = sorted({example.label for example in examples.splits["train"]})
    if not labels:
        raise UsageError(f"{examples.name} has no training example")
    if len(labels) < 2:
        raise UsageError(
            f"{examples.name} has one label to train on, {labels[0]!r}: classification needs at least two"
        )
    places: dict[tuple[str, str], list[str]] = {}
    for split in SPLITS[1:]:
        for example in sorted(examples.splits[split], key=lambda example: example.label):
            if example.label not in labels:
                places.setdefault((example.label, split), []).append(example.id)
    if places:
        unseen = ", ".join(
            f"{label!r} ({len(ids):,} {split} {'examples' if len(ids) > 1 else 'example'}, {ids[0]})"
            for (label, split), ids in places.items()
        )
        raise UsageError(
            f"no training example has {'these labels' if len(places) > 1 else 'this label'}: {unseen}; the model "
            f"learns {', '.join(labels)}: give each of them training examples, or remove these examples"
        )
    return replace(examples, labels=tuple(labels))
