"""The picture of a suite: the difference of each variant to the base with its 95 % interval, by group."""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from zerotollm.explain.figures.marks import Axis, Bands, Dots, Line, Mark, Panel, Symbol
from zerotollm.explain.figures.picture import Picture
from zerotollm.studies.table import FUTURE, Row, footer, interval, measure

COLORS = {"better": 2, "worse": 1, "no difference that matters": 0}
"""Palette indices of verdicts; all others are gray."""
GRAY = 6


def picture(rows: Sequence[Row]) -> Picture:
    """Return the picture of the rows that have a difference, by group, the lowest difference of a group first."""
    known = [row for row in rows if row["shared"]["difference"] is not None]
    compared = [row for row in known if row["shared"]["verdict"] != FUTURE]
    compared.sort(key=lambda row: (row["group"], row["shared"]["difference"], row["variant"]))
    edge = axis_limit(compared)
    bottom = max(1, len(compared)) - 0.5
    x = Axis(
        f"{measure(rows)}: left of 0 is better than the base. Bars are 95 % intervals of single rows.\n"
        "Colors are verdicts, corrected for the number of rows.",
        span=(-edge, edge),
    )
    y = Axis(names=tuple(row["variant"] for row in compared), span=(-0.5, bottom), down=True)
    marks: list[Mark] = [_groups(compared), Line([0, 0], [-0.5, bottom], color=GRAY, dashed=True)]
    for verdict in dict.fromkeys(row["shared"]["verdict"] for row in compared):
        marks += _dots(compared, verdict, edge)
    height = 150 + 24 * max(1, len(compared))
    panel = Panel("Difference to the base", tuple(marks), x, y, height=height, wide=True)
    return Picture(f"Validation {measure(rows)}", (panel,), footer(rows))


def axis_limit(rows: Sequence[Row]) -> float:
    """Return half the width of the axis, so that one distant variant does not squeeze the others.

    It is three times the largest reach of the nearest three quarters of the intervals, or less if all stay within less.
    """
    reaches = sorted(max(abs(_number(row, "low")), abs(_number(row, "high"))) for row in rows)
    return max(1e-6, 1.08 * min(reaches[-1], 3 * reaches[(3 * len(reaches) - 1) // 4])) if reaches else 1.0


def _number(row: Row, key: Literal["difference", "low", "high"]) -> float:
    """Return the difference of a row that has one, or an end of its interval; without interval both are it."""
    shared = row["shared"]
    value = shared["difference"] if shared[key] is None else shared[key]
    assert value is not None
    return value


def _groups(rows: Sequence[Row]) -> Bands:
    by_group = groupby(enumerate(rows), lambda item: item[1]["group"])
    places = {name: [y for y, _ in group] for name, group in by_group}
    low, high = ([ys[end] for ys in places.values()] for end in (0, -1))
    return Bands(tuple(places), [y - 0.5 for y in low], [y + 0.5 for y in high])


def _dots(rows: Sequence[Row], verdict: str, edge: float) -> list[Mark]:
    """Return the dots of a verdict and the numbers to their right; beyond the edge, an arrow replaces a dot."""
    color = COLORS.get(verdict, GRAY)
    chosen = [(y, row) for y, row in enumerate(rows) if row["shared"]["verdict"] == verdict]
    symbols: dict[Symbol, list[tuple[int, Row]]] = {}
    for y, row in chosen:
        x = _number(row, "difference")
        symbols.setdefault("right" if x > edge else "left" if x < -edge else "circle", []).append((y, row))
    marks: list[Mark] = []
    for number, (symbol, points) in enumerate(symbols.items()):
        x, low, high = (
            [min(edge, max(-edge, _number(row, key))) for _, row in points]
            for key in ("difference", "low", "high")
        )
        interval_ends = (low, high) if symbol == "circle" else (None, None)
        texts = ((row["variant"], row["sentence"], row["paper"], _label(row)) for _, row in points)
        hover = tuple("{}: {}\n{}\n{}".format(*text) for text in texts)
        name = "" if number else verdict  # one line of the legend for each verdict
        ys = [y for y, _ in points]
        marks.append(Dots(x, ys, name, color, *interval_ends, across=True, hover=hover, symbol=symbol))
    texts, ys = tuple(_label(row) for _, row in chosen), [y for y, _ in chosen]
    return [*marks, Dots([edge] * len(ys), ys, "", color, text=texts, symbol="none", beside=True)]


def _label(row: Row) -> str:
    comparison = row["shared"]
    return f"{comparison['difference']:+.4f}{interval(comparison)}".replace("-", "\N{MINUS SIGN}")
