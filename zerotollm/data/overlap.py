"""Held-out texts that are training texts too, and passages most of which is: what makes a validation loss too low."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from zerotollm.errors import UsageError

WINDOW = 64
"""Bytes that are compared at once, about 13 English words: the length of arXiv:2005.14165, appendix C."""
PASSAGE = 2000
"""Characters of a passage; a longer text is several."""
HELD_OUT = 1_000_000
"""Characters of a held-out split that are compared at most, in texts spread evenly over it."""
TRAINING = 8_000_000
"""Likewise of the training split."""
TEXTS = 10_000
"""Texts of a split that are read at most."""
BLOCK = 250_000
"""Characters hashed at once."""
FACTOR = 0x9E3779B97F4A7C15
INVERSE = pow(FACTOR, -1, 2**64)
TABLE = 22
"""Bits of a hash that choose a place in the table of those that may be held out."""

T = TypeVar("T")


def check_overlap(corpus: str, splits: Mapping[str, Sequence[str]], *, named: bool) -> None:
    """Logs how many held-out texts are equal to training texts, and how many passages are nearly so.

    Raises UsageError where all texts of a split are equal to training texts and its files were `named` by the user.
    """
    train, earlier, parts = set(splits["train"]), set[str](), []
    for split in ("validation", "test"):
        texts = splits[split]
        equal = sum(text in train for text in texts)
        if named and texts and equal == len(texts):
            raise UsageError(
                f"every text of data.{split} is a training text of {corpus} too, so that it would measure what was "
                "memorized: give other files"
            )
        if equal:
            parts.append(f"{equal:,} of {len(texts):,} {split} texts are training texts too")
        if twice := sum(text in earlier for text in texts):
            parts.append(f"{twice:,} of {len(texts):,} {split} texts are validation texts too")
        earlier = set(texts)
    log_overlap(corpus, splits, str, parts)


def log_overlap(
    corpus: str, splits: Mapping[str, Sequence[T]], text: Callable[[T], str], parts: Iterable[str] = ()
) -> None:
    """Logs `parts` and the share of held-out passages that are near-duplicates, unless there is neither."""
    parts = list(parts)
    for split in ("validation", "test"):
        near, passages = near_duplicates(
            _spread(splits["train"], text, TRAINING), list(_spread(splits[split], text, HELD_OUT))
        )
        if near:
            parts.append(
                f"{near:,} of {passages:,} {split} passages ({100 * near / passages:.1f} %) are near-duplicates: most "
                f"of their runs of {WINDOW} bytes are in the training text"
            )
    if parts:
        _log(f"splits of {corpus}: {'; '.join(parts)}")


@lru_cache(maxsize=256)  # a corpus is opened several times
def _log(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def near_duplicates(train: Iterable[str], held_out: Iterable[str]) -> tuple[int, int]:
    """(near-duplicates, passages) of held-out texts: passages of at most `PASSAGE` characters and at least `WINDOW`
    bytes, and those of them of which more than half of all runs of `WINDOW` bytes occur in a training text.

    Case and the kind of white space make no difference. The hashes are of Karp and Rabin (1987), modulo 2^64.
    """
    passages = [
        window_N
        for text in map(_normalize, held_out)
        for start in range(0, len(text), PASSAGE)
        if len(window_N := _hashes(text[start : start + PASSAGE]))
    ]
    if not passages:
        return 0, 0
    wanted_W, which_N = np.unique(np.concatenate(passages), return_inverse=True)
    # Most training windows are in no held-out text, and a table tells so quicker than a search.
    maybe = np.zeros(2**TABLE, bool)
    maybe[wanted_W >> np.uint64(64 - TABLE)] = True
    seen_W = np.zeros(len(wanted_W), bool)
    for block in _blocks(train):
        hash_N = _hashes(block)
        hash_N = hash_N[maybe[hash_N >> np.uint64(64 - TABLE)]]
        place_N = np.minimum(np.searchsorted(wanted_W, hash_N), len(wanted_W) - 1)
        seen_W[place_N[wanted_W[place_N] == hash_N]] = True
    starts_P = np.cumsum([0, *map(len, passages[:-1])])
    share_P = np.add.reduceat(seen_W[which_N].astype(np.int64), starts_P) / list(map(len, passages))
    return int((share_P > 0.5).sum()), len(passages)


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def _hashes(text: str) -> np.ndarray:
    """uint64: of every run of `WINDOW` bytes."""
    byte_N = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    if len(byte_N) < WINDOW:
        return np.zeros(0, np.uint64)
    # The sum of byte i times FACTOR^i up to each place; of a run the difference, which is moved to power 0.
    size = 1 << len(byte_N).bit_length()
    sum_N = np.cumsum(byte_N * _powers(FACTOR, size)[: len(byte_N)])
    run_N = sum_N[WINDOW - 1 :].copy()
    run_N[1:] -= sum_N[:-WINDOW]
    run_N *= _powers(INVERSE, size)[: len(run_N)]
    run_N ^= run_N >> np.uint64(32)
    return run_N * np.uint64(FACTOR)


@lru_cache(maxsize=64)
def _powers(factor: int, size: int) -> np.ndarray:
    power_N = np.full(size, factor, np.uint64)
    power_N[0] = 1
    return np.cumprod(power_N)


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Normalized texts, joined or cut to about `BLOCK` characters."""
    held, size = [], 0
    for text in texts:
        for start in range(0, len(text), BLOCK):
            held.append(_normalize(text[start : start + BLOCK]))
            size += len(held[-1])
            if size >= BLOCK:
                yield "\n".join(held)
                held, size = [], 0
    yield "\n".join(held)


def _spread(values: Sequence[T], text: Callable[[T], str], most: int) -> Iterator[str]:
    """At most `TEXTS` texts, spread evenly, and of each as many characters as make `most` of them all."""
    number = min(len(values), TEXTS)
    for i in range(number):
        yield text(values[i * len(values) // number])[: most // number]
