"""The merges of byte-pair encoding, done again on the words of the training text, with the counts at the time.

Sennrich et al. 2016 (arXiv:1508.07909, section 3.2): begin with characters and merge, again and again, the pair that
is most frequent. SentencePiece notes the order in its scores, and not the counts. Merging in that order wherever two
neighbours form the piece is how SentencePiece encodes, so the end of it is the tokenizer's own encoding (a test
compares the two), and after k merges it is the encoding of a vocabulary that ends there.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zerotollm.data.cache_folder import build_once
from zerotollm.data.tokens.sentencepiece import SPACE, Tokenizer

_WORD = re.compile(r" ?[^ \n]+| +")


class Merge(NamedTuple):
    """One step of the training of a tokenizer."""

    left: str
    right: str
    rank: int
    """0 for the first merge"""
    count: int
    """times that the two stood side by side in the training text just before; -1 where nobody counted"""


@dataclass(frozen=True)
class Merges:
    """All merges of a BPE tokenizer, in order; R of them."""

    pieces: tuple[str, ...]
    """what each makes, a space as `▁`"""
    left: tuple[str, ...]
    right: tuple[str, ...]
    """the pair that most often made it; empty where it never came about"""
    count_R: np.ndarray
    """of that pair, just before"""
    tokens_R: np.ndarray
    """tokens of the whole text just after"""
    tokens_before: int
    """tokens of the whole text as single characters, unknown ones as bytes"""
    num_bytes: int
    """of the whole text in UTF-8"""

    @property
    def rank(self) -> dict[str, int]:
        return {piece: r for r, piece in enumerate(self.pieces)}


def merge_order(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The pieces that merges made, first to last; none of a tokenizer that does not merge."""
    if tokenizer.kind != "bpe":
        return ()
    pieces = [p for p in tokenizer._proto.pieces if p.type == p.NORMAL and len(p.piece) > 1]
    return tuple(p.piece for p in sorted(pieces, key=lambda p: -p.score))


def count_words(text: str) -> Counter[str]:
    """Words, each with the space before it as `▁`: no token spans two, so each is encoded on its own."""
    return Counter({w.replace(" ", SPACE): n for w, n in Counter(_WORD.findall(text)).items()})


def replay(tokenizer: Tokenizer, words: Mapping[str, int]) -> Merges:
    """Does all merges on counted words. Takes seconds for thousands of merges of tens of thousands of words."""
    order = merge_order(tokenizer)
    known = set(order)
    # A space is one byte, and three as it is spelled in pieces.
    num_bytes = sum(n * (len(word.encode()) - 2 * word.count(SPACE)) for word, n in words.items())
    words = _parts(words, {pair for piece in order for pair in pairwise(piece)})
    alphabet = {p.piece for p in tokenizer._proto.pieces if p.type == p.NORMAL and len(p.piece) == 1}
    state = [list(word) for word in words]
    counts = list(words.values())
    tokens = sum(
        n * sum(1 if c in alphabet else len(c.encode()) for c in word)
        for word, n in zip(state, counts, strict=True)
    )
    before = tokens
    where: dict[str, set[int]] = defaultdict(set)
    for w, symbols in enumerate(state):
        for a, b in pairwise(symbols):
            if a + b in known:
                where[a + b].add(w)
    lefts, rights, pair_counts, totals = [], [], [], []
    for piece in order:
        pairs: Counter[tuple[str, str]] = Counter()
        for w in where.pop(piece, ()):
            symbols, merged, i = state[w], [], 0
            while i < len(symbols):
                if i + 1 < len(symbols) and symbols[i] + symbols[i + 1] == piece:
                    pairs[symbols[i], symbols[i + 1]] += counts[w]
                    merged.append(piece)
                    i += 2
                else:
                    merged.append(symbols[i])
                    i += 1
            if len(merged) == len(symbols):  # an earlier merge took the pair apart
                continue
            tokens -= counts[w] * (len(symbols) - len(merged))
            state[w] = merged
            for a, b in pairwise(merged):
                if a + b in known and (a == piece or b == piece):
                    where[a + b].add(w)
        (left, right), count = pairs.most_common(1)[0] if pairs else (("", ""), 0)
        lefts.append(left)
        rights.append(right)
        pair_counts.append(count)
        totals.append(tokens)
    return Merges(
        order, tuple(lefts), tuple(rights), np.array(pair_counts), np.array(totals), before, num_bytes
    )


def remembered(folder: Path, tokenizer: Tokenizer, tokens_N: np.ndarray) -> Merges:
    """`replay` on the text of these tokens, kept below `folder` so that it is done once for a tokenizer and a text.

    Raises RunError where nothing can be written there.
    """
    known = sha256(
        b"".join([tokenizer.model, np.ascontiguousarray(tokens_N, np.int32).tobytes()])
    ).hexdigest()
    final = folder / f"merges-{known[:24]}"

    def build(into: Path) -> None:
        made = replay(tokenizer, count_words(tokenizer.decode(tokens_N)))
        np.savez(into / "merges.npz", **dataclasses.asdict(made))

    build_once(final, build)
    with np.load(final / "merges.npz") as kept:
        texts = {name: tuple(map(str, kept[name])) for name in ("pieces", "left", "right")}
        return Merges(
            **texts, count_R=kept["count_R"], tokens_R=kept["tokens_R"],
            tokens_before=int(kept["tokens_before"]), num_bytes=int(kept["num_bytes"]),
        )  # fmt: skip


def _parts(words: Mapping[str, int], inside: set[tuple[str, str]]) -> Counter[str]:
    """Words cut wherever no token can span, between two characters that stand side by side in no piece: `king,` is
    `king` and `,`. The same merges, on far fewer different words."""
    parts: Counter[str] = Counter()
    for word, n in words.items():
        start = 0
        for end, pair in enumerate(pairwise(word), 1):
            if pair not in inside:
                parts[word[start:end]] += n
                start = end
        parts[word[start:]] += n
    return parts


def steps_of(word: str, rank: Mapping[str, int], merges: Merges | None = None) -> list[Merge]:
    """The merges that build the tokens of one word, in the order in which they are done."""
    symbols, steps = list(word), []
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in rank]
        if not pairs:
            return steps
        best, i = min(pairs)
        count = int(merges.count_R[best]) if merges else -1
        steps.append(Merge(symbols[i], symbols[i + 1], best, count))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
