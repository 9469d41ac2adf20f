"""Pairs: a source and its translation, the target; which of them are used, and how they are written as text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

UNEQUAL = 9
"""largest ratio of the lengths of a training pair's sides, in characters"""


@dataclass(frozen=True)
class Pair:
    """A sentence or a verse, and its translation."""

    id: str
    source: str
    target: str
    fault: str = ""
    """why it is not a pair, if the corpus knows"""


@dataclass(frozen=True)
class ParallelCorpus:
    """Pairs in three splits, before `usable_pairs`. `fingerprint` changes with every text, id and split."""

    name: str
    fingerprint: str
    splits: Mapping[str, Sequence[Pair]]
    extra: int = 0
    """number of training pairs from `data.extra`; they are the last ones"""


def usable_pairs(pairs: Iterable[Pair], split: str) -> tuple[list[Pair], dict[str, int]]:
    """Return the pairs of a split that are used, and the number of dropped pairs by reason.

    A pair is dropped if its corpus knows a fault or a side is empty; in training also if its lengths are too unequal.
    """
    usable: list[Pair] = []
    dropped = Counter[str]()
    for pair in pairs:
        short, long = sorted(len(side.strip()) for side in (pair.source, pair.target))
        if pair.fault:
            dropped[pair.fault] += 1
        elif not short:
            dropped["one side is empty"] += 1
        elif split == "train" and long > UNEQUAL * short:
            dropped[f"one side is more than {UNEQUAL} times as long as the other"] += 1
        else:
            usable.append(pair)
    return usable, dict(dropped)


def translation_prompt(source: str) -> str:
    """Return what a decoder reads before it writes a translation.

    It ends with a line end, which every vocabulary has and no line of a text contains.
    """
    return f"{as_sentence(source)}\n"


def as_sentence(text: str) -> str:
    """Return a text as it is tokenized: after a space, so that its first word has the same token as elsewhere."""
    return " " + text.strip()
