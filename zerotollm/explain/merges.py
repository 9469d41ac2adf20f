"""Replay of byte-pair encoding's merges on the words of the training text, with the pair counts at each step.

Sennrich et al. 2016 (arXiv:1508.07909, section 3.2): start from characters and repeatedly merge the most frequent pair.
SentencePiece keeps the order of the merges, in its scores, but not the counts. It also encodes by these merges in this
order. The replay therefore ends with the tokenizer's own encoding; after k merges it is that of a smaller vocabulary.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from zerotollm.data.cache_folder import build_once
from zerotollm.data.tokens.sentencepiece import SPACE, AnyTokenizer, Tokenizer

_WORD = re.compile(r" ?[^ \n]+| +")


@dataclass(frozen=True)
class Merge:
    """One step of the training of a tokenizer."""

    left: str
    right: str
    rank: int
    """0 for the first merge"""
    count: int
    """occurrences of the pair in the training text just before the merge; -1 if not counted"""


@dataclass(frozen=True)
class Merges:
    """Counts at all R merges of a BPE tokenizer, in order."""

    count_R: np.ndarray
    """occurrences, just before the merge, of the pair that most often made the piece"""
    tokens_R: np.ndarray
    """tokens of the whole text just after the merge"""
    num_bytes: int
    """of the whole text in UTF-8"""


def merge_order(tokenizer: AnyTokenizer) -> tuple[str, ...]:
    """Return the merged pieces, first to last; none if the tokenizer is not BPE."""
    if not isinstance(tokenizer, Tokenizer) or tokenizer.kind != "bpe":
        return ()
    pieces = [p for p in tokenizer._proto.pieces if p.type == p.NORMAL and len(p.piece) > 1]
    return tuple(p.piece for p in sorted(pieces, key=lambda p: -p.score))


def count_words(text: str) -> Counter[str]:
    """Count words, each with the space before it as `▁`. No token spans two, so each is encoded on its own."""
    return Counter({w.replace(" ", SPACE): n for w, n in Counter(_WORD.findall(text)).items()})


def replay_merges(tokenizer: Tokenizer, words: Mapping[str, int]) -> Merges:
    """Apply all merges to counted words; seconds for thousands of merges of tens of thousands of words."""
    order = merge_order(tokenizer)
    mergeable, count_R, tokens_R = set(order), [], []
    # SPACE has three bytes, the space that it stands for has one.
    num_bytes = sum(n * (len(word.encode()) - 2 * word.count(SPACE)) for word, n in words.items())
    words = _cut_words(words, {pair for piece in order for pair in pairwise(piece)})
    alphabet = {p.piece for p in tokenizer._proto.pieces if p.type == p.NORMAL and len(p.piece) == 1}
    words_symbols = [list(word) for word in words]
    counts = list(words.values())
    tokens = sum(n * sum(1 if c in alphabet else len(c.encode()) for c in word) for word, n in words.items())
    words_with: dict[str, set[int]] = defaultdict(set)  # merged piece -> words that contain its pair
    for w, symbols in enumerate(words_symbols):
        for a, b in pairwise(symbols):
            if a + b in mergeable:
                words_with[a + b].add(w)
    for piece in order:
        pairs: Counter[tuple[str, str]] = Counter()
        for w in words_with.pop(piece, ()):
            symbols, merged, i = words_symbols[w], [], 0
            while i < len(symbols):
                if i + 1 < len(symbols) and symbols[i] + symbols[i + 1] == piece:
                    pairs[symbols[i], symbols[i + 1]] += counts[w]
                    merged.append(piece)
                    i += 2
                else:
                    merged.append(symbols[i])
                    i += 1
            if len(merged) == len(symbols):  # an earlier merge used one of the two symbols
                continue
            tokens -= counts[w] * (len(symbols) - len(merged))
            words_symbols[w] = merged
            for a, b in pairwise(merged):
                if a + b in mergeable and piece in (a, b):
                    words_with[a + b].add(w)
        count_R.append(max(pairs.values(), default=0))
        tokens_R.append(tokens)
    return Merges(np.array(count_R), np.array(tokens_R), num_bytes)


def cached_merges(folder: Path, tokenizer: Tokenizer, tokens_N: np.ndarray) -> Merges:
    """Return `replay_merges` on the text of these tokens, computed once per tokenizer and text and kept in `folder`.

    Raises RunError if the folder cannot be written.
    """
    digest = sha256(tokenizer.model + np.ascontiguousarray(tokens_N, np.int32).tobytes()).hexdigest()
    final = folder / f"merges-{digest[:24]}"

    def build(temporary: Path) -> None:
        merges = replay_merges(tokenizer, count_words(tokenizer.decode(tokens_N)))
        np.savez(temporary / "merges.npz", **dataclasses.asdict(merges))

    build_once(final, build)
    with np.load(final / "merges.npz") as arrays:
        return Merges(arrays["count_R"], arrays["tokens_R"], int(arrays["num_bytes"]))


def _cut_words(words: Mapping[str, int], inside: set[tuple[str, str]]) -> Counter[str]:
    """Cut words between two characters that are neighbours in no piece: `king,` becomes `king` and `,`.

    No token spans such a place. The merges are the same, on far fewer distinct words.
    """
    counts: Counter[str] = Counter()
    for word, n in words.items():
        start = 0
        for end, pair in enumerate(pairwise(word), 1):
            if pair not in inside:
                counts[word[start:end]] += n
                start = end
        counts[word[start:]] += n
    return counts


def word_merges(word: str, rank: Mapping[str, int], merges: Merges | None = None) -> list[Merge]:
    """Return the merges that build the tokens of one word, in order. `rank` maps each merged piece to its place."""
    symbols, steps = list(word), []
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in rank]
        if not pairs:
            return steps
        best, i = min(pairs)
        count = int(merges.count_R[best]) if merges else -1
        steps.append(Merge(symbols[i], symbols[i + 1], best, count))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
