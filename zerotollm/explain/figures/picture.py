"""A picture: panels of marks that a notebook shows and that are saved as an image or as a page."""

from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from zerotollm.errors import UsageError
from zerotollm.explain.figures.marks import Panel
from zerotollm.explain.figures.palette import LIGHT
from zerotollm.explain.figures.plotly_json import colored, page, panel_json
from zerotollm.host.atomic_files import write_atomically


@dataclass(frozen=True)
class Picture:
    """Panels that answer one question."""

    title: str
    panels: tuple[Panel, ...]
    caption: str = ""

    def save(self, path: str | Path) -> Path:
        """Write a .png image (matplotlib) or an interactive .html page (plotly) that needs no network; return the path.

        Raises UsageError for another suffix.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".png":
                from zerotollm.explain.figures.image import png

                write_atomically(path, png(self.title, self.panels))
            case ".html":
                write_atomically(path, page(self.title, self.panels, self.caption))
            case _:
                raise UsageError(f"cannot save a picture as {path.name}: its name must end in .png or .html")
        return path

    def plotly(self) -> list[go.Figure]:
        """Return a plotly figure for each panel."""
        return [go.Figure(colored(panel_json(panel), LIGHT)) for panel in self.panels]

    def _ipython_display_(self) -> None:
        for figure in self.plotly():
            figure.show()

    def __repr__(self) -> str:
        titles = "; ".join(dict.fromkeys(panel.title for panel in self.panels))
        how = "Save it with .save('x.png') or .save('x.html'); a notebook shows it"
        return f"<{self.title}: {titles}. {how}>"
