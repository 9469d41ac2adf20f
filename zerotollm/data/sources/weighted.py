"""Mixtures: several corpora of text and their weights, written `bible-web*2 + sotu + shakespeare*0.5`.

A weight is the share of the training windows, after division by the sum of all weights; without one it is 1. A `+`
stands between two spaces. A name with a `+` or a `*` of its own must exist as a file, a folder or a glob: `notes/*2`
are the files of a folder whose names end in 2 or, where there are none, the folder with the weight 2.
"""

import glob
import os
import re
from collections.abc import Callable
from fractions import Fraction

from zerotollm.errors import UsageError

SEPARATOR = " + "
_WEIGHT = re.compile(
    r"(?P<name>.*[^*])\*(?P<weight>[-+]?([\d.]+(e[-+]?\d+)?|nan|inf|infinity))", re.IGNORECASE
)


def weighted_sources(corpus: str) -> dict[str, Fraction]:
    """Return {corpus: share of the training windows} of a mixture, sorted by name; one corpus has share 1.

    Raises UsageError for a weight that is not above 0, and for a corpus that is named twice.
    """
    parts = _parts(corpus)
    if len(parts) == 1:
        return {corpus: Fraction(1)}
    weights: dict[str, Fraction] = {}
    for part in parts:
        name, weight = _weight(part, corpus)
        if name in weights:
            raise UsageError(f"{corpus} names {name} twice: add up its weights")
        weights[name] = weight
    total = sum(weights.values())
    return {name: weight / total for name, weight in sorted(weights.items())}


def renamed(corpus: str, rename: Callable[[str], str]) -> str:
    """Return a corpus, maybe a mixture, with other names and the same weights."""
    parts = _parts(corpus)
    if len(parts) == 1:
        return rename(corpus)
    names = [_weight(part, corpus)[0] for part in parts]
    return SEPARATOR.join(
        rename(name) + part.removeprefix(name) for name, part in zip(names, parts, strict=True)
    )


def _parts(corpus: str) -> list[str]:
    """Split at ` + `, but not within the name of something that exists; the longest names are tried first."""
    ends = [len(corpus), *(match.start() for match in reversed([*re.finditer(re.escape(SEPARATOR), corpus)]))]
    for end in ends:
        if end == ends[-1] or _exists(corpus[:end]) or _exists(_without_weight(corpus[:end])):
            rest = corpus[end + len(SEPARATOR) :]
            return [corpus[:end].strip(), *(_parts(rest) if rest else [])]
    return [corpus]


def _match(part: str) -> re.Match[str] | None:
    match = _WEIGHT.fullmatch(part)
    if match and match["name"].endswith("/") and not os.path.isdir(os.path.expanduser(match["name"])):
        return None  # a glob
    return match


def _without_weight(part: str) -> str:
    match = _match(part)
    return match["name"] if match else part


def _exists(name: str) -> bool:
    path = os.path.expanduser(name)
    return os.path.exists(path) or (glob.has_magic(path) and bool(glob.glob(path)))


def _weight(part: str, corpus: str) -> tuple[str, Fraction]:
    match = None if _exists(part) else _match(part)
    if not match:
        return part, Fraction(1)
    try:
        weight = Fraction(match["weight"])
    except (ValueError, ZeroDivisionError):  # nan, inf, 1.2.3
        weight = Fraction(0)
    if weight <= 0:
        raise UsageError(
            f"the weight of {match['name']} in {corpus} is {match['weight']}: expected a number above 0; leave out a "
            "corpus that is not to be read"
        )
    return match["name"].rstrip("/"), weight
