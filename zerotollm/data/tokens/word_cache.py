"""The tokens of words, kept: most words of a text have occurred before, and a table is faster than any tokenizer.

It gives the same tokens, because no token spans two words: see `sentencepiece.py`. Importing pyarrow takes 0.3 s, so
this file is imported when the first large text is encoded.
"""

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import pyarrow as pa

from zerotollm.data.tokens.byte_tokenizer import SPACE

MOST_WORDS = 400_000  # kept, about 60 MB; then it begins anew
LONG_WORDS = 16
"""Bytes in a word, on average, above which the table is of no use: the text has few spaces, and few words recur."""


class _Numbers(dict[str, int]):
    """Words by number, in the order in which they were first asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class WordCache:
    """The ids of words, encoded by `encode` when they first occur. U+2581 is a word of its own."""

    def __init__(self, encode: Callable[[list[str]], Sequence[np.ndarray]]):
        self._encode, self._lock = encode, Lock()
        self._clear()

    def _clear(self) -> None:
        self._numbers = _Numbers()
        self._ids = np.zeros(0, np.int32)  # of all words, one after the other
        self._ends = np.zeros(1, np.int64)  # word n has ids ends[n] to ends[n + 1]

    def encode_texts(self, texts: Sequence[str]) -> list[np.ndarray] | None:
        """Return the ids of every text, int32 [N]; None if the words are too long for this to help.

        Raises UnicodeEncodeError for half of a surrogate pair.
        """
        encoded = [text.encode() for text in texts]
        end_D = np.cumsum([len(content) for content in encoded])
        content = b"".join(encoded)
        if not content:
            return [np.zeros(0, np.int32) for _ in texts]
        start_W = _word_starts(np.frombuffer(content, np.uint8), end_D)
        if len(content) > LONG_WORDS * len(start_W):
            return None
        offsets = pa.py_buffer(np.append(start_W, len(content)))
        words = pa.LargeStringArray.from_buffers(
            len(start_W), offsets, pa.py_buffer(content)
        ).dictionary_encode()
        with self._lock:
            number_W = self._numbers_of(words.dictionary.to_pylist())[words.indices.to_numpy()]
            first_W = self._ends[number_W]
            length_W = self._ends[number_W + 1] - first_W
            end_W = np.cumsum(length_W)
            total = int(end_W[-1]) if len(end_W) else 0
            ids_N = self._ids[np.arange(total) + np.repeat(first_W - end_W + length_W, length_W)]
        text_ends = np.append(0, end_W)[np.searchsorted(start_W, end_D)]
        return np.split(ids_N, text_ends[:-1])

    def _numbers_of(self, words: list[str]) -> np.ndarray:
        """Return the numbers of words, which are encoded if they are new. If that fails, no word is kept."""
        if len(self._numbers) > MOST_WORDS:
            self._clear()
        known = len(self._numbers)
        number_W = np.fromiter(map(self._numbers.__getitem__, words), np.int64, len(words))
        new = [word for word, number in zip(words, number_W.tolist(), strict=True) if number >= known]
        if new:
            try:
                ids = self._encode(new)
            except BaseException:
                self._clear()
                raise
            self._ids = np.concatenate([self._ids, *ids]).astype(np.int32)
            self._ends = np.append(self._ends, self._ends[-1] + np.cumsum([len(ids_N) for ids_N in ids]))
        return number_W


def _word_starts(byte_N: np.ndarray, end_D: np.ndarray) -> np.ndarray:
    """Return where the words of UTF-8 texts start, int64: after a line end, at a space after something else."""
    starts_N = np.zeros(len(byte_N) + 1, bool)
    is_space_N = byte_N == ord(" ")
    starts_N[1:-1] = (byte_N[:-1] == ord("\n")) | (is_space_N[1:] & ~is_space_N[:-1])
    starts_N[0] = True
    starts_N[end_D] = True
    first, *others = SPACE.encode()
    place_S = np.flatnonzero(byte_N == first)
    for offset, byte in enumerate(others, 1):
        place_S = place_S[place_S + offset < len(byte_N)]
        place_S = place_S[byte_N[place_S + offset] == byte]
    starts_N[place_S] = starts_N[place_S + len(others) + 1] = True
    return np.flatnonzero(starts_N[:-1])
