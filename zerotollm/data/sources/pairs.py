"""What a parallel corpus is made of: a source and its translation, the target."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

UNEQUAL = 9
"""One side of a training pair may be so many times as long as the other, in characters; more is no translation."""


@dataclass(frozen=True)
class Pair:
    """A sentence or a verse, and its translation."""

    id: str
    source: str
    target: str
    fault: str = ""
    """why it is no pair, where that is known"""


@dataclass(frozen=True)
class ParallelCorpus:
    """Pairs in three splits. If a text, an id or a split changes, so does `fingerprint`.

    A split may still hold pairs to be dropped: see `kept`.
    """

    name: str
    fingerprint: str
    splits: Mapping[str, Sequence[Pair]]
    extra: int = 0
    """of the training pairs, the last ones: they are not of the corpus itself but of `data.extra`"""


def fault(pair: Pair, *, training: bool) -> str | None:
    """Why a pair is dropped, None where it is kept: what its corpus says of it; a side without text; in training also
    one that cannot be a translation of the other, being more than `UNEQUAL` times as long."""
    if pair.fault:
        return pair.fault
    lengths = len(pair.source.strip()), len(pair.target.strip())
    if not min(lengths):
        return "one side is empty"
    if training and max(lengths) > UNEQUAL * min(lengths):
        return f"one side is more than {UNEQUAL} times as long as the other"
    return None


def kept(pairs: Iterable[Pair], split: str) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of a split that are used, and how many were dropped, by reason."""
    used, dropped = [], {}
    for pair in pairs:
        reason = fault(pair, training=split == "train")
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            used.append(pair)
    return used, dropped


def translation_prompt(source: str) -> str:
    """What a decoder reads before it writes a translation. A line end is a token of every vocabulary, and no line of a
    text holds one."""
    return f"{as_sentence(source)}\n"


def as_sentence(text: str) -> str:
    """Text as it is tokenized: after a space, so that a word is the same token at the start as elsewhere."""
    return " " + text.strip()
