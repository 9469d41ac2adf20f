"""Colors of pictures on light and on dark paper.

Series have the colors of Okabe and Ito (2008, "Color Universal Design"), which people with any kind of color vision can
distinguish, lightened for dark paper. Ramps run from the color of the paper to one of these.
"""

from typing import NamedTuple

ORDERED = range(7, 13)
"""Indices of series in an order, such as sizes: viridis, from little to much contrast with the paper."""


class Palette(NamedTuple):
    """Colors of the marks and of the page around them."""

    series: tuple[str, ...]
    ink: str
    soft: str
    """of tick labels"""
    grid: str
    paper: str
    ramp: tuple[tuple[float, str], ...]
    """from nothing to much"""


LIGHT = Palette(
    series=(
        *("#0072b2", "#d55e00", "#009e73", "#b5578f", "#b07900", "#3b9dd6", "#6b7280"),
        *("#9bd93c", "#3fbc73", "#1f978b", "#2d718e", "#404688", "#471365"),
    ),
    ink="#1f2430",
    soft="#5d6575",
    grid="#e4e7ec",
    paper="#ffffff",
    ramp=((0, "#ffffff"), (0.25, "#c3dcec"), (0.5, "#6fb0d8"), (0.75, "#1f7fb8"), (1, "#003f66")),
)
DARK = Palette(
    series=(
        *("#56b4e9", "#f0883e", "#2dc79b", "#e39ac6", "#e6b43c", "#9fd3f2", "#9aa3b2"),
        *("#355f8d", "#26828e", "#20a386", "#4ec36b", "#a2da37", "#fde725"),
    ),
    ink="#e6e9ef",
    soft="#a3abba",
    grid="#2c323d",
    paper="#171a21",
    ramp=((0, "#171a21"), (0.25, "#1d4a68"), (0.5, "#2b80b4"), (0.75, "#6fbdea"), (1, "#e3f3fd")),
)
