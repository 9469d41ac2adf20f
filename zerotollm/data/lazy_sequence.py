"""Sequences whose items are made when they are accessed, and groups of items."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar, overload

T = TypeVar("T")
U = TypeVar("U")


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


def lazy_map(function: Callable[[T], U], items: Sequence[T]) -> LazySequence[U]:
    """Return the sequence of `function(item)`, computed on access."""
    return LazySequence(len(items), lambda index: function(items[index]))


def joined(sequences: Sequence[Sequence[T]]) -> LazySequence[T]:
    """Return the items of several sequences as one."""
    ends = list(accumulate(map(len, sequences)))

    def load(index: int) -> T:
        number = bisect_right(ends, index)
        return sequences[number][index - ends[number] + len(sequences[number])]

    return LazySequence(ends[-1] if ends else 0, load)


def in_groups(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield the items in lists, each ended by the item with which its total size reaches `limit`."""
    group, total = [], 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group
