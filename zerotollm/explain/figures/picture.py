"""A picture as a value: panels of marks, with no library that draws. `plotly.py` and `image.py` draw it.

Colours are numbers of a palette (`palette.py`), so that one picture serves light and dark pages. Text in it is plain:
whoever draws escapes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zerotollm.errors import UsageError


@dataclass(frozen=True)
class Axis:
    """How one direction of a panel is read."""

    label: str = ""
    names: tuple[str, ...] = ()
    """what stands at 0, 1, 2, ...; empty: numbers"""
    log: bool = False
    span: tuple[float, float] | None = None
    """first and last value; None: what the marks need"""
    down: bool = False
    """grows downwards"""


@dataclass(frozen=True)
class Line:
    """y over x, with an interval where `low` and `high` are given."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    color: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    hover: tuple[str, ...] = ()
    dashed: bool = False
    dots: bool = False
    """also a dot at every point"""


@dataclass(frozen=True)
class Dots:
    """Points, with intervals along x or y where `low` and `high` are given."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    color: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    across: bool = False
    """intervals lie along x"""
    hover: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    """beside each point"""
    size: float = 8


@dataclass(frozen=True)
class Bars:
    """Bars from 0: upwards at x, or `across` at heights y = 0, 1, ... from the axis to x."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    color: int = 0
    across: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    hover: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heat:
    """Coloured cells: row y, column x."""

    z_YX: np.ndarray
    label: str
    """what the colour means"""
    hover: tuple[tuple[str, ...], ...] = ()
    says: str = ""
    """instead of `hover`: a sentence with {x} and {y} for the axes' names and {z} for the value"""
    text: tuple[tuple[str, ...], ...] = ()
    """in the cells"""
    span: tuple[float, float] = (0.0, 1.0)
    """values of the first and the last colour"""
    diverging: bool = False
    """two colours with that of the paper between them"""


@dataclass(frozen=True)
class Cloud:
    """Points in space, to be turned."""

    xyz_N3: np.ndarray
    name: str
    color: int
    text: tuple[str, ...] = ()


def said(sentence: str, *columns: Any) -> tuple[str, ...]:
    """A hover text for each point: the sentence with a value of each column in its places. A single value or text is
    the same for all."""
    size = max(len(column) for column in columns if np.ndim(column))
    rows = zip(*(column if np.ndim(column) else [column] * size for column in columns), strict=True)
    return tuple(sentence.format(*row) for row in rows)


Mark = Line | Dots | Bars | Heat | Cloud


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    marks: tuple[Mark, ...]
    x: Axis = Axis()
    y: Axis = Axis()
    height: int = 340
    """pixels of a page"""
    choice: str = ""
    """by which one of several panels is chosen where only one has room"""
    wide: bool = False
    """wants the whole width of a page"""


@dataclass(frozen=True)
class Picture:
    """Panels that answer one question. Shows itself in a notebook; `save` writes it to a file."""

    title: str
    panels: tuple[Panel, ...]
    says: str = ""
    """the sentence below"""

    def save(self, path: str | Path) -> Path:
        """Writes .png (matplotlib) or .html (plotly, to turn and to zoom; works without a network). Returns the path.

        Raises UsageError for another ending.
        """
        from zerotollm.explain.figures.image import png
        from zerotollm.explain.figures.plotly_json import page
        from zerotollm.host.atomic_files import write_atomically

        path = Path(path)
        match path.suffix.lower():
            case ".png":
                write_atomically(path, png(self))
            case ".html":
                write_atomically(path, page(self))
            case _:
                raise UsageError(f"a picture is saved as .png or .html, not as {path.name}")
        return path

    def plotly(self) -> list[Any]:
        """A plotly.graph_objects.Figure for each panel."""
        import plotly.graph_objects as go

        from zerotollm.explain.figures.palette import LIGHT
        from zerotollm.explain.figures.plotly_json import colored, panel_json

        return [go.Figure(colored(panel_json(panel), LIGHT)) for panel in self.panels]

    def _ipython_display_(self) -> None:
        from IPython.display import display

        for figure in self.plotly():
            display(figure)

    def __repr__(self) -> str:
        titles = "; ".join(dict.fromkeys(panel.title for panel in self.panels))
        return f"<{self.title}: {titles}. .save('x.png') or .save('x.html') writes it, a notebook shows it>"
