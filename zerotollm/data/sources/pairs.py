"""Pairs: a source and its translation, the target; which of them are used, and how they are written as text."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

UNEQUAL = 9  # largest ratio of the lengths of a training pair's sides, in characters


@dataclass(frozen=True)
class Pair:
    """A sentence or a verse, and its translation."""

    id: str
    source: str
    target: str
    fault: str = ""  # why it is not a pair, if the corpus knows


def usable_pairs(pairs: Iterable[Pair], split: str) -> tuple[list[Pair], dict[str, int]]:
    """Return the used pairs of a split, and the number of dropped ones by reason; unequal lengths count in training."""
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
    """Return what a decoder reads before a translation. Every vocabulary has its line end, and no line of a text."""
    return f"{as_sentence(source)}\n"


def as_sentence(text: str) -> str:
    """Return a text as it is tokenized: after a space, so that its first word has the same token as elsewhere."""
    return " " + text.strip()
