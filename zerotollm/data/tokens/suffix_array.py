"""A suffix array (Manber and Myers 1993) over tokens: where any run of tokens occurs, found by binary search.

The text is indexed in blocks, so that memory stays bounded however long it is. A run that begins in one block and ends
in the next is found too, because positions are sorted by all the text after them.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zerotollm.data.cache_folder import build_once

BLOCK = 2**22
"""Positions sorted at once. Sorting takes about 60 bytes for each, and less than a microsecond."""
LONGEST = 1024
"""Tokens by which positions are sorted, and the longest match that is found."""


class Matches(NamedTuple):
    """The longest match at each of the T positions of a text."""

    length_T: np.ndarray
    """tokens from this position on that also occur in the indexed text, int64"""
    count_T: np.ndarray
    """how often they occur there; 0 where not even the first does"""


@dataclass(frozen=True)
class SuffixArray:
    """Positions of a text of N tokens, sorted by the tokens from each position on, block by block."""

    tokens_N: np.ndarray
    blocks: tuple[np.ndarray, ...]
    """int32 each: positions relative to the start of the block, which is a multiple of `BLOCK`"""

    def longest_matches(self, text_T: np.ndarray) -> Matches:
        """Return the longest match at each position, with its number of occurrences, in milliseconds."""
        text_T = np.asarray(text_T, np.int64)
        found = [self._ranges(text_T, block) for block in range(len(self.blocks))]
        none_T = np.zeros(len(text_T), np.int64)
        found.append((none_T, none_T, none_T))  # an empty text has no block
        length_XT = np.stack([length_T for length_T, _, _ in found])
        count_XT = np.stack([high_T - low_T for _, low_T, high_T in found])
        length_T = length_XT.max(0)
        return Matches(length_T, np.where(length_XT == length_T, count_XT, 0).sum(0) * (length_T > 0))

    def count(self, run_L: np.ndarray) -> int:
        """Return how often a run of tokens occurs."""
        return sum(high - low for low, high in self._ranges_of(run_L))

    def occurrences(self, run_L: np.ndarray, most: int) -> np.ndarray:
        """Return at most `most` positions, evenly chosen and in order, at which a run of tokens occurs, int64."""
        places = [
            block * BLOCK + self.blocks[block][low:high].astype(np.int64)
            for block, (low, high) in enumerate(self._ranges_of(run_L))
        ]
        place_N = np.sort(np.concatenate(places)) if places else np.zeros(0, np.int64)
        if len(place_N) <= most:
            return place_N
        return place_N[np.linspace(0, len(place_N) - 1, most).astype(int)]

    def _ranges_of(self, run_L: np.ndarray) -> list[tuple[int, int]]:
        """Return the range of the suffixes that begin with a run of tokens, in each block."""
        run_L, ranges = np.asarray(run_L, np.int64), []
        for block in range(len(self.blocks)):
            length, low, high = (
                x[0] if len(run_L) else 0 for x in self._ranges(run_L, block, first_only=True)
            )
            ranges.append((int(low), int(high)) if 0 < length == min(len(run_L), LONGEST) else (0, 0))
        return ranges

    def _ranges(
        self, text_T: np.ndarray, block: int, first_only: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the length of the longest match at each position, and the range of its suffixes in a block.

        All positions are searched together, a token deeper each time. Suffixes that share d tokens are sorted by the
        token after them.
        """
        T, suffixes = len(text_T), self.blocks[block]
        begin_T = np.zeros(min(T, 1), np.int64) if first_only else np.arange(T)
        length_T = np.zeros(len(begin_T), np.int64)
        low_T, high_T = length_T.copy(), np.full(len(begin_T), len(suffixes))
        active = begin_T
        for depth in range(min(T, LONGEST)):
            active = active[begin_T[active] + depth < T]
            wanted = text_T[begin_T[active] + depth]
            low = self._search(block, depth, wanted, low_T[active], high_T[active])
            high = self._search(block, depth, wanted + 1, low, high_T[active])
            hit = low < high
            active = active[hit]
            if not len(active):
                break
            length_T[active], low_T[active], high_T[active] = depth + 1, low[hit], high[hit]
        return length_T, low_T, high_T

    def _search(
        self, block: int, depth: int, wanted: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """Return the first suffix of each range whose token at `depth` is not below the wanted one."""
        suffixes, N = self.blocks[block], len(self.tokens_N)
        while (low < high).any():
            middle = (low + high) // 2
            at = suffixes[np.minimum(middle, len(suffixes) - 1)].astype(np.int64) + block * BLOCK + depth
            token = np.where(at < N, self.tokens_N[np.minimum(at, N - 1)].astype(np.int64), -1)
            below = (token < wanted) & (low < high)
            low, high = np.where(below, middle + 1, low), np.where(below | (low >= high), high, middle)
        return low


def suffix_array(tokens_N: np.ndarray) -> SuffixArray:
    """Return the suffix array of a text. A million tokens take about a second."""
    starts = range(0, len(tokens_N), BLOCK)
    return SuffixArray(tokens_N, tuple(_sorted_positions(tokens_N, start) for start in starts))


def cached_suffix_array(folder: Path, tokens_N: np.ndarray) -> SuffixArray:
    """Return the suffix array of a text, made once and kept in `folder`, from which it is mapped.

    Raises RunError if the folder cannot be written.
    """
    final = folder / f"suffixes-{_digest(tokens_N)}"

    def build(temporary: Path) -> None:
        for start in range(0, len(tokens_N), BLOCK):
            np.save(temporary / f"{start // BLOCK}.npy", _sorted_positions(tokens_N, start))

    build_once(final, build)
    blocks = range(-(-len(tokens_N) // BLOCK))
    return SuffixArray(tokens_N, tuple(np.load(final / f"{block}.npy", mmap_mode="r") for block in blocks))


def _digest(tokens_N: np.ndarray) -> str:
    digest = sha256(f"{LONGEST} {BLOCK}".encode())
    for start in range(0, len(tokens_N), BLOCK):
        digest.update(np.ascontiguousarray(tokens_N[start : start + BLOCK], np.int32).data)
    return digest.hexdigest()[:24]


def _sorted_positions(tokens_N: np.ndarray, start: int) -> np.ndarray:
    """Return the positions of a block, from its start, sorted by the `LONGEST` tokens from each on, int32.

    Prefix doubling: ranks by the first k tokens, of a position and of the one k later, give those by 2 k tokens.
    Only positions that still share a rank are sorted again.
    """
    size = min(BLOCK, len(tokens_N) - start)
    # The end of the text is below every token.
    text_M = np.asarray(tokens_N[start : start + size + LONGEST]).astype(np.int64) + 1
    M = len(text_M)
    order_M = np.argsort(text_M, kind="stable").astype(np.int32)
    rank_M = _ranks(text_M[order_M], order_M)
    k = 1
    while k < LONGEST:
        sorted_rank_M = rank_M[order_M]
        tied_M = np.zeros(M, bool)
        tied_M[1:] = sorted_rank_M[1:] == sorted_rank_M[:-1]
        tied_M[:-1] |= tied_M[1:]
        slots = np.flatnonzero(tied_M)
        if not len(slots):
            break
        place = order_M[slots]
        later = place.astype(np.int64) + k
        second = np.where(later < M, rank_M[np.minimum(later, M - 1)] + 1, 0)
        key = sorted_rank_M[slots].astype(np.int64) * (M + 1) + second
        new = np.argsort(key, kind="stable")
        order_M[slots] = place[new]
        key = key[new]
        # The rank of a group is the slot of its first position, so ranks of other groups stay as they are.
        first = np.append(True, key[1:] != key[:-1])
        rank_M[order_M[slots]] = slots[np.maximum.accumulate(np.where(first, np.arange(len(slots)), 0))]
        k *= 2
    return order_M[order_M < size]


def _ranks(sorted_M: np.ndarray, order_M: np.ndarray) -> np.ndarray:
    """Return the rank of each position: the first place in the order of those with an equal value, int32."""
    first = np.append(True, sorted_M[1:] != sorted_M[:-1])
    rank_M = np.empty(len(order_M), np.int32)
    rank_M[order_M] = np.maximum.accumulate(np.where(first, np.arange(len(order_M)), 0))
    return rank_M
