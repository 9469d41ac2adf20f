"""A report as one HTML file that needs no network, from blocks as values.

No text can become markup: Jinja escapes texts of the page, `in_script` those for its script and `literal` for plotly.
"""

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from zerotollm.explain.figures.palette import DARK, LIGHT
from zerotollm.explain.figures.picture import Picture
from zerotollm.explain.figures.plotly_json import Json, in_script, panel_json
from zerotollm.explain.render.tables import Table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A picture; panels of one title share a place, with a list to choose from."""

    picture: Picture
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Texts:
    """Texts with a heading each, in which one span may be marked."""

    title: str
    texts: tuple[tuple[str, tuple[str, ...], str], ...]
    """(heading, paragraphs, span to mark)"""
    kind: ClassVar[str] = "texts"

    def marked(self) -> list[tuple[str, list[tuple[str, str, str]]]]:
        """Return for each text its heading, and each paragraph as (before, marked, after)."""
        return [
            (heading, [text.partition(span) if span else (text, "", "") for text in paragraphs])
            for heading, paragraphs, span in self.texts
        ]


@dataclass(frozen=True)
class Explorer:
    """A text of T tokens: a chosen token shows where H heads look from it, and the K likeliest next tokens."""

    pieces: tuple[str, ...]
    heads: tuple[str, ...]
    weights_HTS: np.ndarray
    next_pieces: tuple[tuple[str, ...], ...]
    next_p_TK: np.ndarray
    kind: ClassVar[str] = "explorer"

    def data(self) -> Json:
        """Return what the page's script reads; an attention weight is a byte, in units of 1/255."""
        weights = np.round(np.clip(self.weights_HTS, 0, 1) * 255).astype(np.uint8).tobytes()
        return {
            "pieces": list(self.pieces),
            "heads": list(self.heads),
            "weights": b64encode(weights).decode(),
            "next": [list(row) for row in self.next_pieces],
            "p": np.round(np.asarray(self.next_p_TK, float), 4).tolist(),
        }


@dataclass(frozen=True)
class Tree:
    """Names and shapes of a nested dict of arrays."""

    name: str
    shape: str = ""
    size: int = 0
    children: tuple["Tree", ...] = ()
    kind: ClassVar[str] = "tree"


@dataclass(frozen=True)
class Program:
    """A page of its own, which runs a model, as a part of the report."""

    title: str
    html: str
    kind: ClassVar[str] = "program"


Block = Figure | Table | Texts | Explorer | Tree | Program


@dataclass(frozen=True)
class Section:
    """A question, a lesson about it, the sentences that answer it, and blocks that show it."""

    id: str
    short: str
    """title in the list of sections"""
    title: str
    sentences: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    lesson: str = ""
    """what the thing is and how to read the figures, before what was measured"""


@dataclass(frozen=True)
class Report:
    """The content of the page."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    """(number, what it is)"""
    sections: tuple[Section, ...] = ()


def tree(name: str, value: Any) -> Tree:
    """Return the tree of a nested dict of arrays."""
    if isinstance(value, dict):
        children = tuple(tree(key, child) for key, child in value.items())
        return Tree(name, size=sum(child.size for child in children), children=children)
    return Tree(name, " x ".join(map(str, np.shape(value))) or "number", int(np.size(value)))


def render(report: Report) -> str:
    """Return the page. The same report gives the same bytes."""
    figures: list[Json] = []
    explorers: list[Json] = []

    def grouped(picture: Picture) -> list[Json]:
        """Return the places of a picture: its panels by title, each an (index into `figures`, choice)."""
        groups: dict[str, Json] = {}
        for panel in picture.panels:
            group = groups.setdefault(panel.title, {"title": panel.title, "wide": panel.wide, "options": []})
            group["options"].append((len(figures), panel.choice))
            group["height"] = panel.height
            figures.append(panel_json(panel, compact=True))
        return list(groups.values())

    def explorer(block: Explorer) -> int:
        explorers.append(block.data())
        return len(explorers) - 1

    def data() -> Markup:
        """Return what the script reads; the template asks last, when all blocks have added to it."""
        palettes = {"light": LIGHT._asdict(), "dark": DARK._asdict()}
        return Markup(in_script({"figures": figures, "explorers": explorers, "palettes": palettes}))

    loader = FileSystemLoader(HERE)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("template.html").render(
        report=report,
        grouped=grouped,
        explorer=explorer,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        data=data,
    )
