"""The interface of all answers."""

from abc import ABC, abstractmethod

from zerotollm.explain.figures.picture import Picture


class Answer(ABC):
    """Numbers that answer one question about a model; a dataclass for each question inherits from this."""

    @abstractmethod
    def sentence(self) -> str:
        """Return the answer in words, made from the numbers."""

    def show(self) -> Picture:
        """Return the answer as a picture, which a notebook shows and `.save("x.png")` or `.save("x.html")` writes."""
        # Until these answers draw themselves as the others do; then this method is abstract.
        from zerotollm.explain.figures import network

        functions = {
            "Prediction": network.prediction,
            "Calibration": network.reliability,
            "LossByPosition": network.positions,
            "Layers": network.layers,
            "AttentionMaps": network.attention,
            "Alignment": network.alignment,
            "Heads": network.heads,
            "Ablation": network.ablation,
        }
        return functions[type(self).__name__](self)  # pyright: ignore[reportArgumentType]
