"""Marks of a picture as plain values, independent of the library that draws them.

`image.py` (matplotlib) and `plotly_json.py` (plotly) draw them. A color is an index into a palette (`palette.py`),
because one picture serves light and dark pages. Texts are plain: the code that draws escapes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

POINTS = 400
"""Points of a curve over ranks. A reader cannot tell more apart on a logarithmic axis."""

Values = Sequence[float] | np.ndarray
Symbol = Literal["circle", "star", "diamond", "left", "right", "none"]


@dataclass(frozen=True)
class Axis:
    """One direction of a panel."""

    label: str = ""
    names: tuple[str, ...] = ()
    """tick labels at 0, 1, 2, ..., or at `ticks`; empty: numbers"""
    log: bool = False
    span: tuple[float, float] | None = None
    """first and last value; None: as the marks need"""
    down: bool = False
    """values grow downwards"""
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """Values y over x, with an interval around each if `low` and `high` are given."""

    x: Values
    y: Values
    name: str = ""
    """in the legend"""
    color: int = 0
    low: Values | None = None
    high: Values | None = None
    hover: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line(Series):
    """A line through the points."""

    dashed: bool = False
    dots: bool = False
    """also draw a dot at each point"""


@dataclass(frozen=True)
class Dots(Series):
    """A symbol at each point."""

    across: bool = False
    """intervals are along x"""
    text: tuple[str, ...] = ()
    """a label for each point"""
    size: float = 8
    symbol: Symbol = "circle"
    beside: bool = False
    """labels are to the right of the points, and may leave the axes"""


@dataclass(frozen=True)
class Bars(Series):
    """Bars from 0: upwards at x, or `across` at heights y = 0, 1, ... from the axis to x."""

    across: bool = False
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bands:
    """Named horizontal stripes, alternately shaded, from `low` to `high` along y."""

    names: tuple[str, ...]
    low: Values
    high: Values


@dataclass(frozen=True)
class Heat:
    """Colored cells: row y, column x."""

    z_YX: np.ndarray
    label: str
    """of the color scale"""
    hover: tuple[tuple[str, ...], ...] = ()
    hover_template: str = ""
    """instead of `hover`: a sentence with {x} and {y} for the names on the axes and {z} for the value"""
    text: tuple[tuple[str, ...], ...] = ()
    """in the cells"""
    span: tuple[float, float] = (0.0, 1.0)
    """values of the first and the last color"""


@dataclass(frozen=True)
class Cloud:
    """Points in three dimensions, which the reader can rotate."""

    xyz_N3: np.ndarray
    name: str
    color: int
    text: tuple[str, ...] = ()


Mark = Line | Dots | Bars | Bands | Heat | Cloud


@dataclass(frozen=True)
class Panel:
    """Marks on one set of axes."""

    title: str
    marks: tuple[Mark, ...]
    x: Axis = Axis()
    y: Axis = Axis()
    height: int = 340
    """in pixels of a page"""
    choice: str = ""
    """name in the list of panels of the same title, of which a page shows one at a time"""
    wide: bool = False
    """takes the whole width of a page"""


def said(sentence: str, *columns: Any) -> tuple[str, ...]:
    """Return a hover text for each point: the sentence with one value of each column in its places.

    A single value or text stands for a column of equal values.
    """
    size = max(len(column) for column in columns if np.ndim(column))
    rows = zip(*(column if np.ndim(column) else [column] * size for column in columns), strict=True)
    return tuple(sentence.format(*row) for row in rows)


def visible(piece: str) -> str:
    """Return a token as a label: a space is a middle dot."""
    return piece.replace(" ", "\N{MIDDLE DOT}") or "(nothing)"


def spread(N: int) -> np.ndarray:
    """Return at most `POINTS` indices below N, at even steps of the logarithm."""
    return np.unique(np.geomspace(1, N, min(N, POINTS)).astype(int)) - 1 if N else np.zeros(0, int)
