"""Labels of tokens and choice of points, shared by the pictures of the answers."""

import numpy as np

POINTS = 400
"""Points of a curve over ranks. A reader cannot tell more apart on a logarithmic axis."""


def visible(piece: str) -> str:
    """Return a token as a label: a space is a middle dot."""
    return piece.replace(" ", "\N{MIDDLE DOT}") or "(nothing)"


def spread(N: int) -> np.ndarray:
    """Return at most `POINTS` indices below N, at even steps of the logarithm."""
    return np.unique(np.geomspace(1, N, min(N, POINTS)).astype(int)) - 1 if N else np.zeros(0, int)
