"""What a corpus is made of. Every kind of corpus in this folder ends in these two values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Document:
    """One text that is read on its own: a chapter, a play, a file, a line of jsonl."""

    id: str
    text: str
    metadata: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Documents in three splits, none in two. If a text, an id or a split changes, so does `fingerprint`."""

    name: str
    fingerprint: str
    splits: Mapping[str, Sequence[Document]]


class LazyDocuments(Sequence[Document]):
    """A sequence of `count` documents, each made by `load(index)` when it is asked for."""

    def __init__(self, count: int, load: Callable[[int], Document]):
        self._count, self._load = count, load

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._load(i) for i in range(self._count)[index]]
        return self._load(range(self._count)[index])  # range turns negative indices and raises IndexError

    def __repr__(self) -> str:
        return f"<{self._count} documents>"
