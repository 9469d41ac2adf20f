"""The nearest allowed word to one that is not allowed, for error messages. No heavy imports."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no allowed word is near.

    Case and the choice between `-` and `_` do not count, and neither does a missing group: `steps` is near
    `train.steps`.
    """
    names = list(allowed)
    spelled = {_plain(name).rpartition(".")[2]: name for name in reversed(names)}
    spelled |= {_plain(name): name for name in names}
    matches = get_close_matches(_plain(word), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[matches[0]]}?" if matches else ""


def _plain(name: str) -> str:
    return name.lower().lstrip("-").replace("_", "-")
