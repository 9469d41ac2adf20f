"""How an imported tokenizer splits text into words, as explicit ranges of characters.

A tokenizer.json names classes such as `\\p{L}` in a regular expression of Oniguruma. Python's `re` has no such classes,
a browser has those of its own version of Unicode, and C has none. The `tokenizers` library itself says here which
characters a class has, so that a program splits text exactly as the library does.
"""

import re
from functools import cache
from typing import NamedTuple

from tokenizers import Regex
from tokenizers.pre_tokenizers import Digits, Split

from zerotollm.errors import UsageError

RUNS = (
    *range(0xD800),
    *range(0xE000, 0x40000),
    0x40000,  # up to U+DFFFF nothing is assigned
    *range(0xE0000, 0xE1000),
    *(0xE1000, 0xF0000, 0xFFFFE, 0x100000, 0x10FFFE),  # unassigned, private, none, private, none
    0x110000,
)
"""First code points of runs of characters that no class tells apart, and the end of Unicode."""
FOLDED = ("\u017f", "\u212a")
"""Letters beyond ASCII whose case folds to one of ASCII: the long s, and the sign of the kelvin."""
CLASS = r"\\[pP]\{\^?\w+\}|\\x[0-9A-Fa-f]{2}|\\[sSdDwWrntfv]|\\\W"
_ATOM = re.compile(
    rf"(?P<atom>\[(?:{CLASS}|[^\]\[\\&])+\]|{CLASS}|[^\\\[\](){{}}|*+?^$])"
    r"(?P<count>[?*+]|\{\d+(?:,\d*)?\})?(?P<other>[?+])?"
)
_AHEAD = re.compile(rf"\(\?!(?P<atom>\[(?:{CLASS}|[^\]\[\\&])+\]|{CLASS})\)")
_GROUP = re.compile(r"\(\?(?P<fold>i)?:(?P<inner>[^()]*)\)")
_ALTERNATIVE = re.compile(r"(?:\[(?:\\.|[^\]\\])*\]|\([^()]*\)|\\.|[^|\\])+", re.DOTALL)

Ranges = tuple[tuple[int, int], ...]
"""First and last code points of a set of characters, in order."""


class Repeat(NamedTuple):
    """`least` to `most` characters of a set, as many as can be; `most` is None where there is no limit."""

    ranges: Ranges
    least: int = 1
    most: int | None = 1


class Alternative(NamedTuple):
    """Repeats one after the other, which no character of `never` follows."""

    repeats: tuple[Repeat, ...]
    never: Ranges = ()


def parse_pattern(pattern: str, fold: bool = False) -> list[Alternative]:
    """Return the alternatives of a regular expression, of which the first that matches counts.

    `fold`: ignore case. Raises UsageError for an expression with other parts, such as a group within a sequence.
    """
    alternatives: list[Alternative] = []
    texts = _ALTERNATIVE.findall(pattern)
    if "|".join(texts) != pattern or (fold and not pattern.isascii()):
        raise UsageError(f"the pattern {pattern!r}")
    for text in texts:
        if group := _GROUP.fullmatch(text):
            alternatives += parse_pattern(group["inner"], fold or bool(group["fold"]))
            continue
        repeats, never, place = [], (), 0
        while place < len(text):
            if (ahead := _AHEAD.match(text, place)) and ahead.end() == len(text):
                never, place = ranges_of(ahead["atom"], fold), ahead.end()
                continue
            match = _ATOM.match(text, place)
            if not match or match["other"]:
                raise UsageError(f"the pattern {pattern!r}")
            repeats.append(Repeat(ranges_of(match["atom"], fold), *_counts(match["count"])))
            place = match.end()
        if not any(repeat.least for repeat in repeats):
            raise UsageError(f"the pattern {pattern!r}")
        alternatives.append(Alternative(tuple(repeats), never))
    return alternatives


def literal(text: str) -> list[Alternative]:
    """Return the alternative that matches a text alone."""
    return [Alternative(tuple(Repeat(((ord(c), ord(c)),)) for c in text))]


def _counts(count: str | None) -> tuple[int, int | None]:
    if count in ("?", "*", "+"):
        return int(count == "+"), 1 if count == "?" else None
    least, comma, most = (count or "{1}")[1:-1].partition(",")
    return int(least), (int(most) if most else None) if comma else int(least)


@cache
def ranges_of(atom: str, fold: bool = False) -> Ranges:
    """Return the characters that a class of Oniguruma, or a single character, matches. `fold`: ignore case."""
    if len(atom) == 1 and atom != ".":
        equal = [c for c in FOLDED if fold and c.casefold() == atom.casefold()]
        cases = {atom, *equal, *(atom.swapcase() if fold else "")}
        return tuple((code, code) for code in sorted(map(ord, cases)))
    splitter = Split(Regex(f"(?{'i' if fold else ''}:{atom})+"), "removed")
    kept = [place for _, span in splitter.pre_tokenize_str(_all_characters()) for place in span]
    ends = [0, *kept, len(RUNS) - 1]
    return tuple((RUNS[a], RUNS[b] - 1) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b)


@cache
def digits() -> Ranges:
    """Return the characters that the library's Digits splits off. U+0000 is none."""
    spans = [span for _, span in Digits(individual_digits=False).pre_tokenize_str(_all_characters())]
    return tuple((RUNS[a], RUNS[b] - 1) for a, b in spans[1::2])


@cache
def _all_characters() -> str:
    return "".join(map(chr, RUNS[:-1]))


def regular_expression(alternatives: list[Alternative]) -> str:
    """Return alternatives as one group of a regular expression that Python's `re` and JavaScript's `u` read alike."""
    return f"({'|'.join(''.join(map(_repeat, one.repeats)) + _never(one.never) for one in alternatives)})"


def _repeat(repeat: Repeat) -> str:
    least, most = repeat.least, repeat.most
    counts = {(1, 1): "", (0, 1): "?", (0, None): "*", (1, None): "+"}
    return character_class(repeat.ranges) + counts.get(
        (least, most), f"{{{least},{'' if most is None else most}}}"
    )


def _never(ranges: Ranges) -> str:
    return f"(?!{character_class(ranges)})" if ranges else ""


def character_class(ranges: Ranges) -> str:
    """Return a set of characters as a part of a regular expression."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return escaped(chr(ranges[0][0]))
    others = complement(ranges)
    negative = len(others) < len(ranges)
    parts = "".join(
        escaped(chr(first)) + (f"-{escaped(chr(last))}" if last > first else "")
        for first, last in (others if negative else ranges)
    )
    return f"[{'^' * negative}{parts}]"


def complement(ranges: Ranges) -> Ranges:
    """Return the characters that are not in a set."""
    ends = [-1, *(code for pair in ranges for code in pair), RUNS[-1]]
    gaps = zip(ends[::2], ends[1::2], strict=True)
    return tuple((last + 1, first - 1) for last, first in gaps if last + 1 < first)


def escaped(text: str) -> str:
    """Return a regular expression of Python and of JavaScript that matches a text alone."""
    return "".join(c if (c.isascii() and c.isalnum()) or c > "\uffff" else f"\\u{ord(c):04x}" for c in text)
