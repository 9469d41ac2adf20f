"""What all answers have in common."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zerotollm.explain.figures.picture import Picture


class Answer(ABC):
    """Numbers that answer one question; the dataclasses that hold them inherit from this."""

    @abstractmethod
    def sentence(self) -> str:
        """The answer in words, made from the numbers."""

    def show(self) -> "Picture":
        """The answer as a picture, which a notebook shows; `.show().save("x.png")` writes it, also as .html."""
        from zerotollm.explain.figures import draw

        return draw(self)
