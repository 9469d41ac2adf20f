"""The vocabulary of the C program: vocabulary.bin is a struct, whose arrays have the sizes given here."""

import sys
import unicodedata
from typing import Literal, cast

import numpy as np

from zerotollm.data.tokens.pretrained import PretrainedTokenizer
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.errors import UsageError
from zerotollm.programs.imported_vocabulary import word_patterns
from zerotollm.programs.split_pattern import Alternative, Ranges
from zerotollm.programs.unicode_forms import left_alone
from zerotollm.types import Json


def vocabulary_struct(tokens: Json, tokenizer: AnyTokenizer) -> tuple[bytes, Json]:
    """Return vocabulary.bin of the JSON of a tokenizer, and what the program's template reads of it.

    Raises UsageError for an imported tokenizer that normalizes text otherwise than by NFC or NFKC.
    """
    imported = isinstance(tokenizer, PretrainedTokenizer)
    texts = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    spelled = [
        i for i, token in enumerate(tokens["tokens"]) if isinstance(token, str) and i != tokens.get("unk")
    ]
    needs_words = not imported or tokens["whole_words"] or not tokens["byte_level"]
    words = sorted(spelled, key=texts.__getitem__) if needs_words else []
    text = b"".join(texts)
    text += bytes(-len(text) % 4)
    form = tokens["normalization"]
    if form not in (None, "NFC", "NFKC"):
        raise UsageError(f"the program in C has no Unicode normal form {form}: take --format numpy")
    tables = _normalization(form, left_alone() if imported else ()) if form else {}
    sizes: Json = {
        "tokens": len(texts),
        "words": len(words),
        "text": len(text),
        "longest": max(map(len, texts)),
        "expansion": _expansion(form) if form else 1,
        **{name: len(table) for name, table in tables.items()},
    }
    if imported:
        merging, more = _merging(tokens, tokenizer)
        sizes |= more | {"expansion": sizes["expansion"] * more["growth"] + more["prefixes"]}
    else:
        merging = []
        sizes["bytes"] = tokens["bytes"][0] if tokens["bytes"] else None
    arrays = [
        *([] if imported else [np.array(tokens["scores"], "<f4")]),
        np.cumsum([0, *map(len, texts)], dtype="<i4"),
        np.array(words, "<i4"),
        *merging,
        *tables.values(),
        tokenizer.utf8.next_state_SV,
    ]
    return b"".join(x.tobytes() for x in arrays) + text, sizes


def _merging(tokens: Json, tokenizer: PretrainedTokenizer) -> tuple[list[np.ndarray], Json]:
    """Return the arrays with which an imported tokenizer splits and merges text, and what the template reads."""
    merges = [(left, right, both, rank) for rank, (left, right, both) in enumerate(tokens["merges"])]
    rows = sorted(merges) or [(-1, -1, -1, -1)]  # C has no empty arrays
    patterns, numbers = word_patterns(tokenizer), dict[Ranges, int]()
    rules = [[_rule(alternative, numbers) for alternative in pattern] for pattern in patterns]
    ranges = [pair for pairs in numbers for pair in pairs]
    arrays = [np.array(tokens["bytes"], "<i4"), np.array(rows, "<i4")]
    if patterns:
        arrays += [np.cumsum([0, *map(len, numbers)], dtype="<i4"), np.array(ranges, "<u4")]
    counts = [0, *(sum(line.count("{") for line in pattern) for pattern in rules)]
    changes, growth, prefixes = [], 1, 0
    for name, *texts in tokens["changes"]:
        changes.append([name, *(texts if name == "normalize" else map(_c_string, texts))])
        sizes = [len(text.encode()) for text in texts]
        if name == "replace":
            growth *= max(1, -(-sizes[1] // sizes[0]))
        elif name != "normalize":
            prefixes += sizes[0]
    return arrays, {
        "merges": len(rows),
        "patterns": len(patterns),
        "rules": [line for pattern in rules for line in pattern],
        "first": np.cumsum(counts).tolist(),
        "sets": len(numbers),
        "ranges": len(ranges),
        "changes": changes,
        "growth": growth,
        "prefixes": prefixes,
        "added": tokens["added_ids"],
    }


def _rule(alternative: Alternative, numbers: dict[Ranges, int]) -> str:
    """Return the rows of an alternative, and number its sets of characters."""
    repeats = alternative.repeats
    rows = [(x.ranges, x.least, "MANY" if x.most is None else x.most) for x in repeats]
    rows += [(alternative.never, 0, 0)] if alternative.never else []
    texts = [
        f"{{{numbers.setdefault(ranges, len(numbers))}, {least}, {most}}}" for ranges, least, most in rows
    ]
    return ", ".join([*texts, "{-1, 0, 0},"])


def _c_string(text: str) -> str:
    if "\0" in text:
        raise UsageError("the imported tokenizer of this model writes U+0000, and the program in C does not")
    return '"' + "".join(f"\\{byte:03o}" for byte in text.encode()) + '"'


def _normalization(form: Literal["NFC", "NFKC"], alone: Ranges) -> dict[str, np.ndarray]:
    """Return the tables of a Unicode normal form (Unicode Standard Annex 15), each with sorted rows.

    The characters of `alone` are neither combined, decomposed nor composed.
    """
    decomposing = cast(Literal["NFD", "NFKD"], form.replace("C", "D"))
    composed, decomposed, parts, combining = [], [], [], []
    inert = {code for first, last in alone for code in range(first, last + 1)}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if code in inert:
            continue
        if unicodedata.combining(character):
            combining.append((code, unicodedata.combining(character)))
        decomposition = unicodedata.normalize(decomposing, character)
        if decomposition == character:
            continue
        decomposed.append((code, len(parts)))
        parts += [*map(ord, decomposition), 0]
        pair = _canonical_pair(character)
        if pair and not inert & {*pair} and unicodedata.normalize("NFC", character) == character:
            composed.append((*pair, code))
    tables = {"composed": sorted(composed), "decomposed": decomposed, "parts": parts, "combining": combining}
    return {name: np.array(table, "<u4") for name, table in tables.items()}


def _canonical_pair(character: str) -> tuple[int, ...] | None:
    """Return the two characters that compose this one, if there are two."""
    syllable = (
        ord(character) - 0xAC00
    )  # of Hangul: they compose by a rule (The Unicode Standard, section 3.12)
    if 0 <= syllable < 11172:
        last = syllable % 28
        if last:
            return ord(character) - last, 0x11A7 + last
        return 0x1100 + syllable // 588, 0x1161 + syllable % 588 // 28
    fields = unicodedata.decomposition(character).split()
    return tuple(int(code, 16) for code in fields) if len(fields) == 2 and "<" not in fields[0] else None


def _expansion(form: Literal["NFC", "NFKC"]) -> int:
    """Return the most bytes of UTF-8 that one byte may become in a normal form, rounded up."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    decomposing = cast(Literal["NFD", "NFKD"], form.replace("C", "D"))
    ratios = (-(-len(unicodedata.normalize(decomposing, x).encode()) // len(x.encode())) for x in characters)
    return max(ratios)
