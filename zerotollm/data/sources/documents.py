"""Documents in three splits: what every source of text returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """A text that is read on its own: a chapter, a play, a file, a line of jsonl."""

    id: str
    text: str
    metadata: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Documents in three disjoint splits. `fingerprint` changes with every text, id and split."""

    name: str
    fingerprint: str
    splits: Mapping[str, Sequence[Document]]
