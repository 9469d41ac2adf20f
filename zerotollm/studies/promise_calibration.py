"""How often the promises of finished runs held: the calibration of their intervals, and the worst misses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
from rich.table import Table

from zerotollm.explain.estimates import share_estimate
from zerotollm.planning.promises import (
    COVER,
    EARLY,
    LABELS,
    Kept,
    Outcome,
    Quantity,
    When,
    in_words,
    number_of,
)
from zerotollm.run_directory import CONFIG, PROMISE, SUMMARY, read_summary
from zerotollm.studies.table import markdown_table

WORST = 5
"""Misses that are shown."""
MOMENTS: dict[When, str] = {"before": "before step 1", "early": f"after step {EARLY}"}
HEADS = ("promise", "made", "runs", "held", "share [95 %]", "measured / foretold", "interval / foretold")


@dataclass(frozen=True)
class Outcomes:
    """The runs below a folder, by name."""

    judged: Mapping[str, Outcome]
    unfinished: Sequence[str]
    """with a promise and without a summary"""
    without: Sequence[str]
    """finished, and of a version that promised nothing"""

    def left_out(self) -> dict[str, Sequence[str]]:
        """Return the names of the other runs by what they are, in words."""
        others = {"unfinished": self.unfinished, "without a promise": self.without}
        return {words: names for words, names in others.items() if names}


def read_outcomes(folder: Path) -> Outcomes:
    """Return the outcomes of all run directories below a folder. Raises RunError where a summary.json is damaged."""
    judged: dict[str, Outcome] = {}
    unfinished, without = [], []
    for path in sorted({file.parent for name in (SUMMARY, PROMISE) for file in folder.rglob(name)}):
        if not ((path / CONFIG).exists() or (path / PROMISE).exists()):
            continue
        name, summary = str(path.relative_to(folder)), read_summary(path)
        if summary is None:
            unfinished.append(name)
        elif (
            isinstance(outcome := summary.get("promises"), dict) and {"kept", "not_judged"} <= outcome.keys()
        ):
            judged[name] = cast(Outcome, outcome)
        else:
            without.append(name)
    return Outcomes(judged, unfinished, without)


def rows(outcomes: Outcomes) -> list[tuple[str, ...]]:
    """Return a row for each quantity and moment, and one for all together, under `HEADS`."""
    groups: dict[tuple[When, Quantity], list[Kept]] = {}
    for outcome in outcomes.judged.values():
        for kept in outcome["kept"]:
            groups.setdefault((kept["when"], kept["quantity"]), []).append(kept)
    found = [
        (LABELS[quantity], MOMENTS[when], *_cells(group), *_widths(group))
        for when in MOMENTS
        for quantity in LABELS
        if (group := groups.get((when, quantity)))
    ]
    together = [kept for group in groups.values() for kept in group]
    return [*found, ("all", "", *_cells(together), "", "")] if len(found) > 1 else found


def _cells(group: Sequence[Kept]) -> tuple[str, str, str]:
    held = sum(kept["held"] for kept in group)
    share = share_estimate(np.array(held), np.array(len(group)))
    return str(len(group)), str(held), f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _widths(group: Sequence[Kept]) -> tuple[str, str]:
    errors = [kept["measured"] / kept["value"] for kept in group]
    lows, highs = ([kept[end] / kept["value"] for kept in group] for end in ("low", "high"))
    return (
        f"{median(errors):.3g}, {min(errors):.3g} to {max(errors):.3g}",
        f"{median(lows):.3g} to {median(highs):.3g}",
    )


def terminal_table(outcomes: Outcomes) -> Table:
    """Return the calibration as a table."""
    table = Table(*HEADS, box=None, pad_edge=False)
    for row in rows(outcomes):
        table.add_row(*row)
    return table


def markdown(outcomes: Outcomes) -> str:
    """Return the calibration as a Markdown table and a sentence on what is not in it, without a newline at its end."""
    return "\n".join([markdown_table(HEADS, rows(outcomes)), "", *(f"- {line}" for line in lines(outcomes))])


def lines(outcomes: Outcomes) -> list[str]:
    """Return the misses that are farthest from their intervals, and what was not judged, one a line."""
    missed = [
        (max(kept["measured"] / kept["high"], kept["low"] / kept["measured"]), name, kept)
        for name, outcome in outcomes.judged.items()
        for kept in outcome["kept"]
        if not kept["held"]
    ]
    missed.sort(key=lambda miss: -miss[0])
    text = [f"missed: {name}, {describe(kept)}" for _, name, kept in missed[:WORST]]
    if len(missed) > WORST:
        text.append(f"and {len(missed) - WORST} smaller misses")
    reasons: dict[str, int] = {}
    for outcome in outcomes.judged.values():
        for quantity, reason in outcome["not_judged"].items():
            label = f"{LABELS[cast(Quantity, quantity)]}: {reason}"
            reasons[label] = reasons.get(label, 0) + 1
    text += [f"not judged in {number} of the runs: {reason}" for reason, number in reasons.items()]
    return text + [f"{words}: {', '.join(names)}" for words, names in outcomes.left_out().items()]


def describe(kept: Kept) -> str:
    """Return one promise and its outcome in words."""
    quantity = kept["quantity"]
    measured = number_of(quantity, kept["measured"])
    return f"{LABELS[quantity]} {measured}, foretold {in_words(quantity, kept)} {MOMENTS[kept['when']]}"


def headline(outcomes: Outcomes) -> str:
    """Return how many runs were found and how often intervals are meant to hold."""
    return f"{len(outcomes.judged)} runs with a promise; intervals are meant to hold {COVER:.0%} of the time"
