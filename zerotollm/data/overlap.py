"""Held-out texts that also occur in the training text: they make the validation loss too low."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from zerotollm.data.lazy_sequence import in_groups
from zerotollm.errors import UsageError

WINDOW = 64  # bytes compared at once, about 13 words, as in arXiv:2005.14165, appendix C
PASSAGE = 2000  # characters in a passage; a longer text is several passages
MOST_HELD_OUT = 1_000_000  # characters of a held-out split that are compared, spread evenly
MOST_TRAINING = 8_000_000  # the same for the training split
MOST_TEXTS = 10_000  # texts of a split that are read
BLOCK = 250_000  # characters hashed at once
FACTOR = 0x9E3779B97F4A7C15
INVERSE = pow(FACTOR, -1, 2**64)
TABLE_BITS = 22  # leading bits of a hash that index the table of possible held-out hashes

T = TypeVar("T")

_warn_once = lru_cache(maxsize=256)(logging.getLogger(__name__).warning)  # a corpus is opened several times


def check_overlap(corpus: str, splits: Mapping[str, Sequence[str]], *, named: bool) -> None:
    """Log repeated held-out texts and passages. Raises UsageError if the user `named` files with no other texts."""
    train, validation = set(splits["train"]), set(splits["validation"])
    findings = []
    for split in ("validation", "test"):
        texts = splits[split]
        in_train = sum(text in train for text in texts)
        if named and texts and in_train == len(texts):
            raise UsageError(
                f"every text of data.{split} is a training text of {corpus} too, so the loss on it would measure "
                "memorization: give other files"
            )
        in_validation = sum(text in validation for text in texts) if split == "test" else 0
        for equal, other in ((in_train, "training"), (in_validation, "validation")):
            if equal:
                findings.append(f"{equal:,} of {len(texts):,} {split} texts are {other} texts too")
    log_findings(corpus, findings + find_overlap(splits, str))


def find_overlap(splits: Mapping[str, Sequence[T]], text: Callable[[T], str]) -> list[str]:
    """Return the share of held-out passages that are near-duplicates, in words, for each split that has some."""
    findings = []
    train = list(_spread(splits["train"], text, MOST_TRAINING))
    for split in ("validation", "test"):
        near, passages = near_duplicates(train, list(_spread(splits[split], text, MOST_HELD_OUT)))
        if near:
            findings.append(
                f"{near:,} of {passages:,} {split} passages ({100 * near / passages:.1f} %) are near-duplicates: most "
                f"of their windows of {WINDOW} bytes are in the training text"
            )
    return findings


def log_findings(corpus: str, findings: Sequence[str]) -> None:
    """Log what is known about the splits of a corpus, once."""
    if findings:
        _warn_once(f"splits of {corpus}: {'; '.join(findings)}")


def near_duplicates(train: Iterable[str], held_out: Iterable[str]) -> tuple[int, int]:
    """Return (near-duplicates, passages) of held-out texts.

    A passage of `WINDOW` bytes to `PASSAGE` characters is a near-duplicate if more than half of its windows of `WINDOW`
    bytes occur in a training text. Case and the kind of white space are ignored. Windows are compared by their rolling
    hashes (Karp and Rabin 1987), modulo 2^64.
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
    # Most training windows are in no held-out text, and a table shows that faster than a search.
    shift = np.uint64(64 - TABLE_BITS)
    maybe = np.zeros(2**TABLE_BITS, bool)
    maybe[wanted_W >> shift] = True
    seen_W = np.zeros(len(wanted_W), bool)
    pieces = (_normalize(text[i : i + BLOCK]) for text in train for i in range(0, len(text), BLOCK))
    for block in in_groups(pieces, len, BLOCK):
        hash_N = _hashes("\n".join(block))
        hash_N = hash_N[maybe[hash_N >> shift]]
        place_N = np.minimum(np.searchsorted(wanted_W, hash_N), len(wanted_W) - 1)
        seen_W[place_N[wanted_W[place_N] == hash_N]] = True
    starts_P = np.cumsum([0, *map(len, passages[:-1])])
    share_P = np.add.reduceat(seen_W[which_N].astype(np.int64), starts_P) / list(map(len, passages))
    return int((share_P > 0.5).sum()), len(passages)


def _normalize(text: str) -> str:
    return " ".join(text.lower().split())


def _hashes(text: str) -> np.ndarray:
    """Return the hash of every window of `WINDOW` bytes, uint64 [windows]."""
    byte_N = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    if len(byte_N) < WINDOW:
        return np.zeros(0, np.uint64)
    # Prefix sums of byte i times FACTOR^i; a window is a difference of two, shifted to power 0.
    size = 1 << len(byte_N).bit_length()
    sum_N = np.cumsum(byte_N * _powers(FACTOR, size)[: len(byte_N)])
    window_N = sum_N[WINDOW - 1 :].copy()
    window_N[1:] -= sum_N[:-WINDOW]
    window_N *= _powers(INVERSE, size)[: len(window_N)]
    window_N ^= window_N >> np.uint64(32)
    return window_N * np.uint64(FACTOR)


@lru_cache(maxsize=64)
def _powers(factor: int, size: int) -> np.ndarray:
    power_N = np.full(size, factor, np.uint64)
    power_N[0] = 1
    return np.cumprod(power_N)


def _spread(values: Sequence[T], text: Callable[[T], str], most_characters: int) -> Iterator[str]:
    """Yield at most `MOST_TEXTS` texts, spread evenly, each cut to an equal share of `most_characters`."""
    number = min(len(values), MOST_TEXTS)
    for i in range(number):
        yield text(values[i * len(values) // number])[: most_characters // number]
