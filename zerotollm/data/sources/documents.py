"""Documents in three splits: what every source of text returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

SPLITS = ("train", "validation", "test")

T = TypeVar("T")


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


class LazySequence(Sequence[T]):
    """A sequence of `count` items. `load(index)` makes an item each time it is accessed."""

    def __init__(self, count: int, load: Callable[[int], T]):
        self._count, self._load = count, load

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._load(i) for i in range(self._count)[index]]
        return self._load(range(self._count)[index])  # range resolves negative indices and raises IndexError

    def __repr__(self) -> str:
        return f"<{self._count} items>"
