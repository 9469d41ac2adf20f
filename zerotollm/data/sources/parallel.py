"""Sources of pairs. The corpus is written `SOURCE:TARGET`, or `SOURCE+SOURCE:TARGET` for several sources:

bible-wyc:bible-web   versions of the Bible, joined by verse; all versions hold out the same chapters
a.txt:b.txt           your own line-aligned files, each also .gz
pairs.tsv             one file of source TAB target, also .gz
tfds:NAME             any TensorFlow Datasets translation set, without TensorFlow

With several sources, every target is in as many training pairs; validation and test take the first source only.
Own files are split by a hash of the target, unless `data.validation` (and `data.test`) name files.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from zerotollm.data.config import DataConfig, is_file, is_tsv
from zerotollm.data.lazy_sequence import lazy_map
from zerotollm.data.overlap import check_overlap
from zerotollm.data.sources.bible_pairs import package, read_pairs, version_names
from zerotollm.data.sources.documents import Corpus, Document
from zerotollm.data.sources.lines import read_lines
from zerotollm.data.sources.packaged import open_packaged
from zerotollm.data.sources.pairs import Pair, usable_pairs
from zerotollm.data.sources.splits import file_digest, fingerprint, fractions, split_rows
from zerotollm.data.sources.tfds import open_tfds_pairs
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import check_unchanged, stamps

FORMS = (
    "bible-wyc:bible-web, SOURCE.txt:TARGET.txt (several sources: A+B:TARGET), PAIRS.tsv or tfds:NAME of a "
    "translation set"
)
SAMPLED = 20_000
"""Pairs, evenly spaced and up to twice as many, from which the size of a corpus is estimated."""


def open_parallel(config: DataConfig) -> Corpus[Pair]:
    """Return the pairs that `config.corpus` names; `config.reverse` swaps the sides. Raises UsageError or RunError."""
    name = config.corpus
    if name.startswith("tfds:"):
        corpus = open_tfds_pairs(config, available=["bible-ylt:bible-bbe"])
    elif is_tsv(name):
        corpus = _open_files(config)
    else:
        are_bibles = [side.startswith("bible-") for side in _all_sides(name)]
        if any(are_bibles) and not all(are_bibles):
            raise UsageError(f"{name} joins a Bible version and a file: give two of one kind, as in {FORMS}")
        corpus = (_open_bibles if all(are_bibles) else _open_files)(config)
    if not config.reverse:
        return corpus
    splits = {split: lazy_map(_swap, pairs) for split, pairs in corpus.splits.items()}
    return Corpus(f"{corpus.name} reversed", f"reversed {corpus.fingerprint}", splits, corpus.extra)


def target_bytes(config: DataConfig) -> int:
    """Return about how many UTF-8 bytes the targets of the training pairs have. Raises as `open_parallel`."""
    pairs = open_parallel(config).splits["train"]
    every = max(1, len(pairs) // SAMPLED)
    return every * sum(len(pair.target.encode()) for pair in usable_pairs(pairs[::every], "train")[0])


def _swap(pair: Pair) -> Pair:
    return replace(pair, source=pair.target, target=pair.source)


def sides(name: str) -> tuple[list[str], str]:
    """Return (["a", "b"], "c") for `a+b:c`. A + or : within the name of an existing file separates nothing."""
    for place in (match.start() for match in re.finditer(":", name)):
        target = name[place + 1 :]
        if is_file(target) and (sources := _existing_files(name[:place])):
            return sources, target
    left, colon, target = name.partition(":")
    sources = left.split("+")
    if not (colon and target and all(sources)) or ":" in target or "+" in target:
        raise UsageError(
            f"'{name}' is no parallel corpus: give data.corpus as {FORMS}; a path with : or + must exist"
        )
    return sources, target


def _all_sides(name: str) -> list[str]:
    sources, target = sides(name)
    return [*sources, target]


def _existing_files(sources: str) -> list[str]:
    """Return the files that `a+b` names, trying the longest names first; none unless all exist."""
    ends = [len(sources), *(match.start() for match in reversed([*re.finditer(r"\+", sources)]))]
    for end in filter(lambda end: is_file(sources[:end]), ends):
        rest = _existing_files(sources[end + 1 :])
        if rest or end == len(sources):
            return [sources[:end], *rest]
    return []


def _open_bibles(config: DataConfig) -> Corpus[Pair]:
    for field in ("validation", "test", "extra"):
        if getattr(config, field):
            raise UsageError(f"data.{field} needs own files, and {config.corpus} is not: leave it out")
    *sources, target = names = version_names(config.corpus, _all_sides(config.corpus))
    packages = sorted({package(name) for name in names})
    corpus = open_packaged(
        config,
        f"{'+'.join(sources)}-to-{target}",
        "-".join(package.version for package in packages),
        lambda: read_pairs(sources, target),
    )

    def pair(document: Document) -> Pair:
        metadata = document.metadata
        return Pair(document.id, document.text, str(metadata["target"]), str(metadata["fault"]))

    splits = {split: lazy_map(pair, documents) for split, documents in corpus.splits.items()}
    return Corpus(config.corpus, corpus.fingerprint, splits)


class _Row(NamedTuple):
    place: str
    texts: list[str]  # sources, then the target


def _open_files(config: DataConfig) -> Corpus[Pair]:
    names = [name for name in (config.corpus, config.validation, config.test) if name]
    before = stamps(path for name in names for path in _paths(name))
    rows = split_rows(config, _read_rows(config.corpus), _read_rows, lambda row: row.texts[-1])
    description: list[object] = [[file_digest(path) for path in _paths(name)] for name in names]
    if not config.validation:
        description += map(str, fractions(config))
    check_unchanged(before)
    splits = {split: _pairs(split_rows, split) for split, split_rows in rows.items()}
    texts = {
        split: [f"{p.source}\n{p.target}" for p in pairs if p.source.strip() and p.target.strip()]
        for split, pairs in splits.items()
    }
    check_overlap(config.corpus, texts, named=bool(config.validation))
    extra = _extra_pairs(config, splits) if config.extra else []
    if extra:
        description.append([[pair.source, pair.target] for pair in extra])
        splits["train"] += extra
    return Corpus(config.corpus, fingerprint(description), splits, len(extra))


def _pairs(rows: Sequence[_Row], split: str) -> list[Pair]:
    """Return the pairs of all sources in training and of the first source elsewhere, source by source."""
    num_sources = len(rows[0].texts) - 1 if rows else 0
    return [
        Pair(row.place, row.texts[number], row.texts[-1])
        for number in range(num_sources if split == "train" else 1)
        for row in rows
    ]


def _extra_pairs(config: DataConfig, splits: dict[str, list[Pair]]) -> list[Pair]:
    """Return the verses of `config.extra` whose target is a training target and not a held-out one.

    Targets are compared by their letters and digits only. The pair takes the target as the files write it.
    """

    def key(text: object) -> str:
        return re.sub(r"\W+", " ", str(text).lower()).strip()

    names = _all_sides(config.extra)
    if not all(name.startswith("bible-") for name in names):
        raise UsageError(
            f"data.extra is {config.extra}: expected Bible versions, for example bible-kjv+bible-asv:bible-bbe"
        )
    *sources, target = version_names(config.extra, names)
    held_out = {key(pair.target) for split in ("validation", "test") for pair in splits[split]}
    targets = {key(pair.target): pair.target for pair in splits["train"]}
    pairs = [
        Pair(f"{verse.id} {verse.metadata['version']}", verse.text, targets[verse_key])
        for verses in read_pairs(sources, target, hold_out=False).values()
        for verse in verses
        if (verse_key := key(verse.metadata["target"])) in targets and verse_key not in held_out
        if verse_key and verse.text and not verse.metadata["fault"]
    ]
    if not pairs:
        raise UsageError(f"data.extra {config.extra} adds no pair: no training target is a verse of {target}")
    return pairs


def _paths(name: str) -> list[Path]:
    return [Path(side).expanduser() for side in ([name] if is_tsv(name) else _all_sides(name))]


def _read_rows(name: str) -> list[_Row]:
    paths = _paths(name)
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist or is not a file: give data.corpus as {FORMS}")
    columns = [list(read_lines(path)) for path in paths]
    if len(paths) == 1:
        # An empty line is a pair of two empty texts, which is dropped and counted.
        rows = [line.split("\t") if line else ["", ""] for line in columns[0]]
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                message = f"{paths[0]}, line {number}: {len(row) - 1} tabs, and source TAB target needs one"
                raise UsageError(message)
    else:
        for path, column in zip(paths, columns, strict=True):
            if len(column) != len(columns[-1]):
                raise UsageError(
                    f"{path} has {len(column):,} lines and {paths[-1]} {len(columns[-1]):,}: line-aligned files "
                    "need equally many"
                )
        rows = [list(row) for row in zip(*columns, strict=True)]
    return [_Row(f"{paths[-1].name}:{number}", row) for number, row in enumerate(rows, 1)]
