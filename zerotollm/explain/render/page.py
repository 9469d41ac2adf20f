"""A report as one HTML file: blocks in, text out. It needs no network, and nothing in a text can become markup.

Jinja escapes what stands in the page, `in_script` what its script reads, `literal` what plotly takes for markup.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zerotollm.explain.figures.palette import DARK, LIGHT
from zerotollm.explain.figures.picture import Picture
from zerotollm.explain.figures.plotly_json import in_script, panel_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A picture; panels of one title become one, with a list to choose from."""

    picture: Picture
    kind: str = "figure"


@dataclass(frozen=True)
class Table:
    """Rows of texts; columns of numbers are aligned right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    folded: bool = False
    """only the title is seen at first"""
    kind: str = "table"


@dataclass(frozen=True)
class Texts:
    """Texts with a heading each, of which a part may be marked."""

    title: str
    texts: tuple[tuple[str, tuple[str, ...], str], ...]
    """(heading, paragraphs, part of each to mark)"""
    kind: str = "texts"

    def parts(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """(heading, (before, marked, after) of each paragraph) of each."""
        return [
            (head, [text.partition(mark) if mark else (text, "", "") for text in paragraphs])
            for head, paragraphs, mark in self.texts
        ]


@dataclass(frozen=True)
class Explorer:
    """A text whose tokens say, hovered over or come to by keys, where they look and what comes next."""

    pieces: tuple[str, ...]
    heads: tuple[str, ...]
    weights_HTS: np.ndarray
    next_pieces: tuple[tuple[str, ...], ...]
    next_p_TK: np.ndarray
    kind: str = "explorer"

    def data(self) -> dict[str, Any]:
        """As the page's script reads it: attention in 255ths, a byte each."""
        bytes_ = np.round(np.clip(self.weights_HTS, 0, 1) * 255).astype(np.uint8).tobytes()
        return {
            "pieces": list(self.pieces),
            "heads": list(self.heads),
            "weights": b64encode(bytes_).decode(),
            "next": [list(row) for row in self.next_pieces],
            "p": np.round(np.asarray(self.next_p_TK, float), 4).tolist(),
        }


@dataclass(frozen=True)
class Tree:
    """A nested dict of arrays, as names and shapes."""

    name: str
    shape: str = ""
    size: int = 0
    children: tuple["Tree", ...] = ()
    kind: str = "tree"


Block = Figure | Table | Texts | Explorer | Tree


@dataclass(frozen=True)
class Section:
    """A question, the sentences that answer it, and what shows it."""

    id: str
    short: str
    """in the list of sections"""
    title: str
    sentences: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    """(number, what it is)"""
    sections: tuple[Section, ...] = field(default=())


def tree(name: str, value: Any) -> Tree:
    """The tree of a nested dict of arrays."""
    if isinstance(value, dict):
        children = tuple(tree(key, child) for key, child in value.items())
        return Tree(name, size=sum(child.size for child in children), children=children)
    return Tree(name, " x ".join(map(str, np.shape(value))) or "number", int(np.size(value)))


def render(report: Report) -> str:
    """The page. The same report gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    figures: list[dict[str, Any]] = []
    explorers: list[dict[str, Any]] = []
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )

    def grouped(picture: Picture) -> list[dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {}
        for panel in picture.panels:
            group = groups.setdefault(panel.title, {"title": panel.title, "wide": panel.wide, "options": []})
            group["options"].append((len(figures), panel.choice))
            group["height"] = panel.height
            figures.append(panel_json(panel, compact=True))
        return list(groups.values())

    def explorer(block: Explorer) -> int:
        explorers.append(block.data())
        return len(explorers) - 1

    environment.globals["right"] = right
    template = environment.get_template("template.html")
    palettes = {"light": LIGHT._asdict(), "dark": DARK._asdict()}
    return template.render(
        report=report,
        grouped=grouped,
        explorer=explorer,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        # Called at the end of the page, when all of it has been asked for.
        data=lambda: Markup(in_script({"figures": figures, "explorers": explorers, "palettes": palettes})),
    )


def is_number(text: str) -> bool:
    """Whether a cell of a table is to be aligned right."""
    return (
        bool(text)
        and text.strip("+-−").replace(",", "").replace(".", "").replace(" ", "").rstrip("%").isdigit()
    )


def right(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether a column holds numbers."""
    cells = [row[column] for row in rows if row[column] not in ("", "-")]
    return bool(cells) and all(map(is_number, cells))
