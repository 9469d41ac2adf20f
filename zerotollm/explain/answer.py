"""The interface of all answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from zerotollm.explain.figures.marks import Panel
from zerotollm.explain.figures.picture import Picture


class Answer(ABC):
    """Numbers that answer one question about a model; a dataclass for each question inherits from this."""

    title: ClassVar[str]

    @abstractmethod
    def sentence(self) -> str:
        """Return the answer in words, made from the numbers."""

    @abstractmethod
    def panels(self) -> Iterable[Panel]:
        """Return the panels of the picture."""

    def show(self) -> Picture:
        """Return the answer as a picture, which a notebook shows and `.save("x.png")` or `.save("x.html")` writes."""
        return Picture(self.title, tuple(self.panels()), self.sentence())

    def save(self, path: str | Path) -> Path:
        """Write the picture as a .png image or an .html page, and return the path; see `Picture.save`."""
        return self.show().save(path)
