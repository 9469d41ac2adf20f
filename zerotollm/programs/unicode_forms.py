"""Characters that the `tokenizers` library leaves alone in Unicode normalization, though newer versions change them.

Its tables are those of an older version of Unicode than Python's, and those of a browser may be newer than both. A
program that normalizes only the text between these characters gives the library's result: a character that is not
combined, decomposed or composed separates what is before it from what is after it (Unicode Standard Annex 15).
"""

import sys
import unicodedata
from functools import cache

from tokenizers.normalizers import NFKD, Normalizer

from zerotollm.programs.split_pattern import Ranges

OVERLAY, ABOVE = "\u0334", "\u0301"
"""Combining characters of a low and of a high class, 1 and 230."""


@cache
def left_alone() -> Ranges:
    """Return the characters that Python does not know, and those that it changes and the library does not."""
    form, alone = NFKD(), set[int]()
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) == "Cn":
            alone.add(code)
        if unicodedata.combining(character) and not _is_combining(form, character):
            alone.add(code)
        if 0xD800 <= code < 0xE000 or unicodedata.normalize("NFKD", character) == character:
            continue
        if form.normalize_str(character) == character:
            first, *rest = unicodedata.normalize("NFD", character)
            alone |= (
                {code, *map(ord, rest)} if rest and not _is_combining(form, rest[-1]) else {code, ord(first)}
            )
    codes = sorted(alone)
    starts = [code for n, code in enumerate(codes) if not n or codes[n - 1] < code - 1]
    ends = [code for n, code in enumerate(codes) if n + 1 == len(codes) or codes[n + 1] > code + 1]
    return tuple(zip(starts, ends, strict=True))


def _is_combining(form: Normalizer, character: str) -> bool:
    """Return whether the library sorts a combining character among others by its class, as Python does."""
    text = f"a{character}{OVERLAY}" if unicodedata.combining(character) > 1 else f"a{ABOVE}{character}"
    return form.normalize_str(text) == unicodedata.normalize("NFKD", text) != text
