"""Where pairs come from. The corpus is written `SOURCE:TARGET`, or `SOURCE+SOURCE:TARGET` for several sources:

bible-wyc:bible-web   versions of the Bible, joined by verse; the same chapters are held out in all of them
a.txt:b.txt           your own line-aligned files, each also .gz
pairs.tsv             one file of source TAB target, also .gz
tfds:NAME             any TensorFlow Datasets translation set, without TensorFlow

Several sources give a target as many training pairs; validation and test take the first source alone. Own files are
split by a hash of the target, unless `validation` (and `test`) name files for it.
"""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig, is_file, is_tsv
from zerotollm.data.overlap import check_overlap
from zerotollm.data.sources import bible, foreign_bibles
from zerotollm.data.sources.documents import Document, LazyDocuments
from zerotollm.data.sources.lines import read_lines
from zerotollm.data.sources.own_files import fractions, split_by_hash
from zerotollm.data.sources.packaged import LAYOUT, prepare_packaged
from zerotollm.data.sources.pairs import Pair, ParallelCorpus
from zerotollm.data.sources.tfds import open_tfds_pairs
from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import check_unchanged, stamps
from zerotollm.suggest import did_you_mean

FORMS = (
    "bible-wyc:bible-web, SOURCE.txt:TARGET.txt (several sources: A+B:TARGET), PAIRS.tsv or tfds:NAME of a "
    "translation set"
)


def versions() -> dict[str, str]:
    """Every Bible version that may stand in a pair, and what it is; installed or not."""
    return bible.VERSIONS | {name: title for name, (_, title) in foreign_bibles.VERSIONS.items()}


def open_parallel(config: DataConfig) -> ParallelCorpus:
    """The pairs that `config.corpus` names; with `config.reverse`, from target to source.

    Raises UsageError where there is no such corpus, a package is missing, a file cannot be read or files are of
    unequal length; RunError where preparation fails.
    """
    name = config.corpus
    if name.startswith("tfds:"):
        corpus = open_tfds_pairs(config, working=["bible-ylt:bible-bbe"])
    elif is_tsv(name):
        corpus = _open_files(config)
    else:
        sources, target = sides(name)
        bibles = [part.startswith("bible-") for part in (*sources, target)]
        if all(bibles):
            for field in ("validation", "test", "extra"):
                if getattr(config, field):
                    raise UsageError(f"data.{field} goes with own files, and {name} is none: leave it out")
            corpus = _open_bibles(config, sources, target)
        elif any(bibles):
            raise UsageError(f"{name} joins a Bible version and a file: take two of one kind, as in {FORMS}")
        else:
            corpus = _open_files(config)
    return _reversed(corpus) if config.reverse else corpus


def sides(name: str) -> tuple[list[str], str]:
    """`a+b:c` as (["a", "b"], "c"). A file that exists is one part, whatever is in its name.

    Raises UsageError where the name has another form.
    """
    for place in (match.start() for match in re.finditer(":", name)):
        target = name[place + 1 :]
        if is_file(target) and (sources := _files_in(name[:place])):
            return sources, target
    left, colon, target = name.partition(":")
    sources = left.split("+")
    if not (colon and target and all(sources)) or ":" in target or "+" in target:
        raise UsageError(
            f"'{name}' is no parallel corpus: give data.corpus as {FORMS}; a path with : or + must exist"
        )
    return sources, target


def _files_in(sources: str) -> list[str]:
    """The files that `a+b` names, the longest first; none unless all exist."""
    ends = [len(sources), *(match.start() for match in reversed([*re.finditer(r"\+", sources)]))]
    for end in ends:
        if is_file(sources[:end]):
            if end == len(sources):
                return [sources]
            if rest := _files_in(sources[end + 1 :]):
                return [sources[:end], *rest]
    return []


def _reversed(corpus: ParallelCorpus) -> ParallelCorpus:
    def turned(pairs: Sequence[Pair]) -> Sequence[Pair]:
        def load(index: int) -> Pair:
            return replace(pairs[index], source=pairs[index].target, target=pairs[index].source)

        return LazyDocuments(len(pairs), load)

    splits = {split: turned(pairs) for split, pairs in corpus.splits.items()}
    return ParallelCorpus(f"{corpus.name} reversed", f"reversed {corpus.fingerprint}", splits, corpus.extra)


# --- the Bible


def _open_bibles(config: DataConfig, sources: list[str], target: str) -> ParallelCorpus:
    names = [part.removeprefix("bible-") for part in (*sources, target)]
    check_versions(config.corpus, names)
    packages = sorted({distribution(name) for name in names})
    stamp = "-".join(importlib.metadata.version(package) for package in packages)
    folder = (
        data_directory(config) / "corpora" / f"{'+'.join(names[:-1])}-to-{names[-1]}-{stamp}-layout{LAYOUT}"
    )
    fingerprint, documents = prepare_packaged(folder, "ParallelBible", f"{'_'.join(names[:-1])}-{names[-1]}")

    def pair(split: str, index: int) -> Pair:
        document = documents[split][index]
        return Pair(document.id, document.text, document.metadata["target"], document.metadata["fault"])

    splits = {
        split: LazyDocuments(len(documents[split]), lambda index, split=split: pair(split, index))
        for split in documents
    }
    return ParallelCorpus(config.corpus, fingerprint, splits)


def check_versions(written: str, names: Sequence[str]) -> None:
    """Raises UsageError where a version does not exist or is not installed, with the command that installs it."""
    known = versions()
    for name in names:
        if name not in known:
            raise UsageError(
                f"{written}: there is no bible-{name}: one of {', '.join(known)}"
                f"{did_you_mean(f'bible-{name}', [f'bible-{version}' for version in known])}"
            )
        here = foreign_bibles.is_installed() if name in foreign_bibles.VERSIONS else bible.is_installed(name)
        if not here:
            raise UsageError(
                f"bible-{name} ({known[name]}) is not installed; install it with: {install_command(name)}"
            )


def distribution(version: str) -> str:
    """The distribution that carries a version of the Bible."""
    return foreign_bibles.PACKAGE if version in foreign_bibles.VERSIONS else f"pythonbible-{version}"


def install_command(version: str) -> str:
    """What installs it."""
    return (
        foreign_bibles.INSTALL
        if version in foreign_bibles.VERSIONS
        else f"pip install pythonbible-{version}==0.0.2"
    )


def read_pairs(sources: Sequence[str], target: str, *, hold_out: bool = True) -> dict[str, list[Document]]:
    """{split: a document a verse, whose text is the source}, every source version's verses one after the other.

    Metadata: target, the source's version, and fault, as in `Pair`. A verse that only one of two versions has is
    there too, with an empty side. Held-out chapters are those of `bible.chapter_splits`, and take the first source
    version alone; without `hold_out` all is training.
    """
    read = {
        name: (foreign_bibles if name in foreign_bibles.VERSIONS else bible).read_verses(name)
        for name in dict.fromkeys((*sources, target))
    }
    splits: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for number, source in enumerate(sources):
        chapters: dict[tuple[int, int], list[int]] = {}
        for verse in sorted(read[source].keys() | read[target].keys()):
            if 1 <= verse // 10**6 <= len(bible.BOOKS):
                chapters.setdefault((verse // 10**6, verse // 1000 % 1000), []).append(verse)
        for (book, chapter), verses in chapters.items():
            split = bible.chapter_splits().get((book, chapter), "train") if hold_out else "train"
            if number > 0 and split != "train":
                continue
            left = {verse: read[source].get(verse, "") for verse in verses}
            right = {verse: read[target].get(verse, "") for verse in verses}
            vulgate = book == PSALMS and (source in VULGATE) != (target in VULGATE)
            fault = NUMBERED if vulgate or numbered_otherwise(left, right) else ""
            for verse in verses:
                metadata = {"target": right[verse], "version": source, "fault": fault}
                name = f"{bible.BOOKS[book - 1][0]} {chapter}:{verse % 1000}"
                splits[split].append(Document(name, left[verse], metadata))
    return splits


NUMBERED = "the chapter's verses are numbered otherwise in the two versions"
PSALMS = 19
VULGATE = {"wyc", "dr"}
"""Versions translated from the Latin, which joins and cuts psalms in other places and counts their titles."""


def numbered_otherwise(left: dict[int, str], right: dict[int, str]) -> bool:
    """Whether the verses of a chapter fit those with the next or the last number clearly better than their own.

    Long verses are long in every version, so the logarithms of lengths of verses that belong together correlate (the
    idea of Gale and Church 1993). Chapters with fewer than 8 verses in common say too little, and pass.
    """

    def fit(shift: int) -> float:
        both = [
            (len(text), len(right[verse + shift]))
            for verse, text in left.items()
            if text and right.get(verse + shift)
        ]
        lengths_N2 = np.log(np.array(both or [(1, 1)]))
        if len(both) < 8 or not lengths_N2.std(axis=0).all():
            return -1.0
        return float(np.corrcoef(lengths_N2.T)[0, 1])

    own = fit(0)
    return own < 0.5 and max(fit(-1), fit(1)) > own + 0.15


# --- own files


def _open_files(config: DataConfig) -> ParallelCorpus:
    validation, test = fractions(config)
    names = [name for name in (config.corpus, config.validation, config.test) if name]
    before = stamps(path for name in names for path in _paths(name))
    rows = _read_files(config.corpus)
    described = [_digests(config.corpus)]
    if config.test and not config.validation:
        raise UsageError("data.test names files, and data.validation none: give both, or neither")
    if config.validation:
        parts = {"train": rows, "validation": _read_files(config.validation)}
        parts["test"] = _read_files(config.test) if config.test else []
        described += [_digests(name) for name in (config.validation, config.test) if name]
    else:
        hashes = [hashlib.sha256(texts[-1].encode()).digest()[:8] for _, texts in rows]
        hash_N = np.array([int.from_bytes(digest, "big") for digest in hashes], np.uint64)
        chosen = split_by_hash(config, hash_N, validation, test)
        parts = {split: [rows[row] for row in row_M] for split, row_M in chosen.items()}
        described += [str(validation), str(test)]
    check_unchanged(before)

    def pairs(split: str) -> list[Pair]:
        sources = (len(parts[split][0][1]) - 1) if parts[split] else 0
        return [
            Pair(place, texts[number], texts[-1])
            for number in range(sources if split == "train" else min(1, sources))
            for place, texts in parts[split]
        ]

    splits = {split: pairs(split) for split in parts}
    both = {
        split: [f"{p.source}\n{p.target}" for p in rows if p.source.strip() and p.target.strip()]
        for split, rows in splits.items()
    }
    check_overlap(config.corpus, both, named=bool(config.validation))
    more = _extra_pairs(config, splits) if config.extra else []
    if more:
        described.append([[pair.source, pair.target] for pair in more])
        splits["train"] += more
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return ParallelCorpus(config.corpus, fingerprint, splits, len(more))


def _extra_pairs(config: DataConfig, splits: dict[str, list[Pair]]) -> list[Pair]:
    """The verses of `config.extra` whose target is a training target and no held-out one, letters and digits alone
    being compared; with the target as the files have it."""

    def key(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower()).strip()

    sources, target = sides(config.extra)
    names = [part.removeprefix("bible-") for part in (*sources, target)]
    if not all(part.startswith("bible-") for part in (*sources, target)):
        raise UsageError(
            f"data.extra is {config.extra}, and must be Bible versions: bible-kjv+bible-asv:bible-bbe"
        )
    check_versions(config.extra, names)
    held_out = {key(pair.target) for split in ("validation", "test") for pair in splits[split]}
    wanted = {key(pair.target): pair.target for pair in splits["train"]}
    more = []
    for documents in read_pairs(names[:-1], names[-1], hold_out=False).values():
        for document in documents:
            verse = key(document.metadata["target"])
            if verse in wanted and verse not in held_out and verse and not document.metadata["fault"]:
                place = f"{document.id} {document.metadata['version']}"
                more.append(Pair(place, document.text, wanted[verse]))
    more = [pair for pair in more if pair.source]
    if not more:
        raise UsageError(
            f"data.extra {config.extra} adds no pair: no training target is a verse of {names[-1]}"
        )
    return more


def _paths(name: str) -> list[Path]:
    sources, target = ([name], "") if is_tsv(name) else sides(name)
    return [Path(part).expanduser() for part in (*sources, *([target] if target else []))]


def _digests(name: str) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in _paths(name)]


def _read_files(name: str) -> list[tuple[str, list[str]]]:
    """(where, [source, ..., target]) of every line."""
    paths = _paths(name)
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} does not exist or is no file: give data.corpus as {FORMS}")
    columns = [list(read_lines(path)) for path in paths]
    if len(paths) == 1:
        rows = [line.split("\t") for line in columns[0]]
        for number, row in enumerate(rows, 1):
            if row == [""]:
                row.append("")  # an empty line: a pair of nothing, which is dropped and counted
            if len(row) != 2:
                raise UsageError(
                    f"{paths[0]}, line {number}: {len(row) - 1} tabs, and source TAB target needs one"
                )
        return [(f"{paths[0].name}:{number}", row) for number, row in enumerate(rows, 1)]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != len(columns[-1]):
            raise UsageError(
                f"{path} has {len(column):,} lines and {paths[-1]} {len(columns[-1]):,}: line-aligned files have "
                "as many as each other"
            )
    rows = [list(row) for row in zip(*columns, strict=True)]
    return [(f"{paths[-1].name}:{number}", row) for number, row in enumerate(rows, 1)]
