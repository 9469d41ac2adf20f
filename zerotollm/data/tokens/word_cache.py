"""The tokens of words, kept: most words of a text have occurred before, and a dict is faster than any tokenizer.

It gives the same tokens, because no token spans two words: see `sentencepiece.py`.
"""

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

MOST_WORDS = 1_000_000  # kept, about 150 MB; then it begins anew


class _Numbers(dict[str, int]):
    """Words by number, in the order in which they were first asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class WordCache:
    """The ids of words, encoded by `encode` when they first occur."""

    def __init__(self, encode: Callable[[list[str]], Sequence[np.ndarray]]):
        self._encode, self._lock = encode, Lock()
        self._clear()

    def _clear(self) -> None:
        self._numbers = _Numbers()
        self._ids = np.zeros(0, np.int32)  # of all words, one after the other
        self._ends = np.zeros(1, np.int64)  # word n has ids ends[n] to ends[n + 1]

    def encode_texts(self, texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return the ids of texts that are given as words, each int32 [N]."""
        with self._lock:
            if len(self._numbers) > MOST_WORDS:
                self._clear()
            known = len(self._numbers)
            words = [word for text in texts for word in text]
            number_W = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
            if new := list(self._numbers)[known:] if len(self._numbers) > known else []:
                self._add(new)
            start_W = self._ends[number_W]
            length_W = self._ends[number_W + 1] - start_W
            end_W = np.cumsum(length_W)
            total = int(end_W[-1]) if len(end_W) else 0
            ids_N = self._ids[np.arange(total) + np.repeat(start_W - end_W + length_W, length_W)]
        word_ends = np.cumsum([len(text) for text in texts])
        text_ends = np.append(0, end_W)[word_ends]
        return np.split(ids_N, text_ends[:-1]) if len(texts) else []

    def _add(self, words: list[str]) -> None:
        """Encode new words. If that fails, none of them is kept."""
        try:
            ids = self._encode(words)
        except BaseException:
            self._clear()
            raise
        self._ids = np.concatenate([self._ids, *ids]).astype(np.int32)
        self._ends = np.append(self._ends, self._ends[-1] + np.cumsum([len(ids_N) for ids_N in ids]))
