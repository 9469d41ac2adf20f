"""Split a source into train, validation and test, and fingerprint what was read."""

import hashlib
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np

from zerotollm.data.config import DataConfig
from zerotollm.data.sources.documents import SPLITS
from zerotollm.errors import UsageError

FEW = 20  # rows; with fewer, a split by hash is too far from the requested fractions

T = TypeVar("T")


def fingerprint(description: object, *, sort_keys: bool = False) -> str:
    """Return the SHA-256 of a JSON value. Cached tokens are keyed by it."""
    return hashlib.sha256(json.dumps(description, sort_keys=sort_keys).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash64(text: str) -> int:
    """Return the first 64 bits of the SHA-256 of a text in UTF-8."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def fractions(config: DataConfig) -> tuple[Fraction, Fraction]:
    """Return (validation, test) exactly as the decimal numbers that were written, or raise UsageError."""
    validation, test = Fraction(str(config.validation_fraction)), Fraction(str(config.test_fraction))
    if not (validation > 0 and test >= 0 and validation + test < 1):
        raise UsageError(
            f"data.validation_fraction is {config.validation_fraction} and data.test_fraction is "
            f"{config.test_fraction}: the first must be above 0, the second at least 0, their sum below 1"
        )
    return validation, test


def split_by_hash(config: DataConfig, hash_N: np.ndarray) -> dict[str, np.ndarray]:
    """Return the row numbers of each split, by hash: a row keeps its split when others come; equal rows share one."""
    validation, test = fractions(config)
    test_end, held_out_end = (np.uint64(int(end * 2**64)) for end in (test, test + validation))
    in_test, held_out = hash_N < test_end, hash_N < held_out_end
    if not (held_out & ~in_test).any():  # no hash fell into validation: take the next larger one
        candidates = hash_N[~held_out]
        if candidates.size:
            held_out |= hash_N == candidates.min()
    masks = {"train": ~held_out, "validation": held_out & ~in_test, "test": in_test}
    if not (masks["train"].any() and masks["validation"].any()):
        raise UsageError(
            f"{config.corpus} is too short: {len(hash_N)} documents cannot be split into train and validation"
        )
    return {split: np.flatnonzero(mask) for split, mask in masks.items()}


def split_of_hash(config: DataConfig, number: int) -> str:
    """Return the split of one row by its hash, as `split_by_hash` chooses it."""
    validation, test = fractions(config)
    if number < int(test * 2**64):
        return "test"
    return "validation" if number < int((test + validation) * 2**64) else "train"


def split_rows_by_hash(config: DataConfig, rows: Sequence[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Return the rows of each split, by the hash of `key(row)`."""
    row_numbers = split_by_hash(config, np.array([hash64(key(row)) for row in rows], np.uint64))
    return {split: [rows[i] for i in row_M] for split, row_M in row_numbers.items()}


def split_rows(
    config: DataConfig, rows: Sequence[T], read: Callable[[str], Sequence[T]], key: Callable[[T], str]
) -> dict[str, Sequence[T]]:
    """Return the rows of each split: those of `data.validation` and `data.test` if named, else by hash."""
    if config.validation:
        held_out = [read(name) if name else [] for name in (config.validation, config.test)]
        return dict(zip(SPLITS, [rows, *held_out], strict=True))
    if config.test:
        raise UsageError("data.test is set and data.validation is not: name files for both, or for neither")
    return {**split_rows_by_hash(config, rows, key)}
