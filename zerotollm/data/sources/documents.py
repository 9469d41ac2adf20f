"""Documents in three splits: what every source of text returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    parts: "Sequence[Part]" = ()  # of a corpus that is only read in order; its splits are then empty


Part = Callable[[], Iterator[tuple[str, str]]]
"""Yield (split, text) of every document in a part of a corpus, for example in one file of it."""

SAMPLED_PARTS = 16  # from whose beginnings a tokenizer learns


def training_texts(corpus: Corpus[Document], most_characters: int) -> Iterator[str]:
    """Yield the training texts: all, or of a corpus in parts the beginnings of some, evenly spread."""
    number = min(len(corpus.parts), SAMPLED_PARTS)
    for k in range(number):
        left = most_characters // number
        for split, text in corpus.parts[k * len(corpus.parts) // number]():
            if split == "train":
                yield text
                left -= len(text)
            if left <= 0:
                break
    yield from (document.text for document in corpus.splits["train"])
