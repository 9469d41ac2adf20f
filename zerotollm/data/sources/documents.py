"""Documents in three splits: what every source of text returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

SPLITS = ("train", "validation", "test")

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class Document:
    """A text that is read on its own: a chapter, a play, a file, a line of jsonl."""

    id: str
    text: str
    metadata: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus(Generic[T]):
    """Documents, pairs or examples in disjoint splits. `fingerprint` changes with every text, label, id and split."""

    name: str
    fingerprint: str
    splits: Mapping[str, Sequence[T]]
    extra: int = 0  # training pairs from `data.extra`; they are the last ones
    labels: tuple[str, ...] = ()  # of examples, in alphabetical order
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # pairs, by split and reason
