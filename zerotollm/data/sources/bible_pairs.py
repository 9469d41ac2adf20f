"""Pairs of Bible verses: the same verse in two of the versions of `bible.py` and `foreign_bibles.py`."""

from collections.abc import Mapping, Sequence

import numpy as np

from zerotollm.data.sources import bible, foreign_bibles
from zerotollm.data.sources.documents import Document
from zerotollm.data.sources.packaged import Package
from zerotollm.errors import UsageError
from zerotollm.suggest import did_you_mean

VERSIONS = bible.VERSIONS | foreign_bibles.VERSIONS
"""every version that may stand in a pair, installed or not, and its title"""
NUMBERED_DIFFERENTLY = "the chapter's verses are numbered otherwise in the two versions"
PSALMS = 19
VULGATE = {"wyc", "dr"}
"""versions translated from Latin, which divides the psalms differently and counts their titles as verses"""


def package(version: str) -> Package:
    return foreign_bibles.PACKAGE if version in foreign_bibles.VERSIONS else bible.package(version)


def read_verses(version: str) -> Mapping[int, str]:
    return (foreign_bibles if version in foreign_bibles.VERSIONS else bible).read_verses(version)


def version_names(corpus: str, names: Sequence[str]) -> list[str]:
    """Return the versions that `bible-VERSION` names mean. Raises UsageError, naming `corpus`, for a missing one."""
    versions = [name.removeprefix("bible-") for name in names]
    for version in versions:
        if version not in VERSIONS:
            suggestion = did_you_mean(f"bible-{version}", [f"bible-{name}" for name in VERSIONS])
            raise UsageError(
                f"{corpus}: there is no bible-{version}; choose one of {', '.join(VERSIONS)}{suggestion}"
            )
        package(version).check_installed(f"bible-{version} ({VERSIONS[version]})")
    return versions


def read_pairs(sources: Sequence[str], target: str, *, hold_out: bool = True) -> dict[str, list[Document]]:
    """Return {split: one document per verse and source version}, version by version. The text is the source.

    Metadata: target, the source's version, and fault, as in `Pair`. A missing verse is an empty side. Held-out chapters
    are in the first source version only. Without `hold_out`, all verses are training pairs.
    """
    verses = {version: read_verses(version) for version in dict.fromkeys((*sources, target))}
    splits: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for number, source in enumerate(sources):
        ids = sorted(verses[source].keys() | verses[target].keys())
        for (book, chapter), chapter_ids in bible.verses_by_chapter(ids).items():
            split = bible.split_of((book, chapter)) if hold_out else "train"
            if number > 0 and split != "train":
                continue
            left, right = ({i: verses[name].get(i, "") for i in chapter_ids} for name in (source, target))
            vulgate = book == PSALMS and (source in VULGATE) != (target in VULGATE)
            fault = NUMBERED_DIFFERENTLY if vulgate or numbered_differently(left, right) else ""
            for i in chapter_ids:
                metadata: dict[str, str | int] = {"target": right[i], "version": source, "fault": fault}
                name = f"{bible.BOOKS[book - 1][0]} {chapter}:{i % 1000}"
                splits[split].append(Document(name, left[i], metadata))
    return splits


def numbered_differently(left: dict[int, str], right: dict[int, str]) -> bool:
    """Return whether the verses of a chapter match the next or previous numbers clearly better than their own.

    Log lengths of matching verses correlate (the idea of Gale and Church 1993). Chapters with fewer than 8 common
    verses are too short to tell and return False.
    """

    def correlation(shift: int) -> float:
        lengths = [
            (len(text), len(right[verse + shift]))
            for verse, text in left.items()
            if text and right.get(verse + shift)
        ]
        lengths_N2 = np.log(np.array(lengths or [(1, 1)]))
        if len(lengths) < 8 or not lengths_N2.std(axis=0).all():
            return -1.0
        return float(np.corrcoef(lengths_N2.T)[0, 1])

    unshifted = correlation(0)
    return unshifted < 0.5 and max(correlation(-1), correlation(1)) > unshifted + 0.15
