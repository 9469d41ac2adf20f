"""Panels as one PNG image, drawn by matplotlib."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, rcParamsDefault
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from zerotollm.explain.figures.marks import Axis, Bands, Bars, Cloud, Dots, Heat, Line, Mark, Panel, Symbol
from zerotollm.explain.figures.palette import LIGHT
from zerotollm.output import printable

Style = dict[Any, Any]
"""Keyword arguments of matplotlib."""
COLUMNS = 3
MOST = 24
"""Panels in one image; the title says if there are more."""
CELL = (5.2, 3.9)
"""Width and height of a panel, in inches."""
WIDTHS = {1: 9.8, 2: 6.6}
"""Widths of panels, by their number, if all are wide; their heights are then their own."""
PIXELS_PER_CHARACTER = 9
"""Names below an axis are turned if they have no room beside each other."""
PIXELS_PER_INCH = 87
"""Pixels of a page that are an inch of an image."""
SYMBOLS: dict[Symbol, str] = {
    "circle": "o", "star": "*", "diamond": "D", "left": "<", "right": ">", "none": "none",
}  # fmt: skip


def png(title: str, panels: Sequence[Panel]) -> bytes:
    """Return an image of the first `MOST` panels. The same panels give the same bytes."""
    more = f" (the first {MOST} of {len(panels)})" if len(panels) > MOST else ""
    panels = panels[:MOST]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    few_wide = len(panels) in WIDTHS and all(panel.wide for panel in panels)
    width, height = CELL
    if few_wide:
        width, height = WIDTHS[len(panels)], max(panel.height for panel in panels) / PIXELS_PER_INCH
    # The reader's own matplotlibrc must not change the bytes.
    own = ("backend", "interactive")
    defaults: Style = {name: value for name, value in rcParamsDefault.items() if not name.startswith(own)}
    with rc_context(defaults):
        figure = Figure(figsize=(width * columns, height * rows + 0.7), dpi=110, layout="constrained")
        figure.set_facecolor(LIGHT.paper)
        canvas = FigureCanvasAgg(figure)
        legend: dict[str, Artist] = {}
        for number, panel in enumerate(panels, 1):
            in_space = any(isinstance(mark, Cloud) for mark in panel.marks)
            axes = figure.add_subplot(rows, columns, number, projection="3d" if in_space else None)
            _panel(axes, panel)
            handles, labels = axes.get_legend_handles_labels()
            if few_wide:
                legend |= zip(labels, handles, strict=True)
            elif len(labels) > 1:
                axes.legend(fontsize=7, frameon=False, labelcolor=LIGHT.ink)
        if legend:
            style: Style = {"fontsize": 8, "frameon": False, "labelcolor": LIGHT.ink}
            figure.legend(legend.values(), legend, loc="outside lower left", ncols=4, **style)
        figure.suptitle(plain(title + more), x=0.01, ha="left", fontsize=12, color=LIGHT.ink)
        out = BytesIO()
        canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is written.

    Dollar signs do not start mathematics, and a leading underscore does not hide a label. Characters that are not in
    matplotlib's font become a box.
    """
    shown = printable(text).expandtabs()
    shown = "".join(c if ord(c) < 0x2E80 else "\N{WHITE SQUARE}" for c in shown).replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + shown if shown.startswith("_") else shown


def _panel(axes: Axes, panel: Panel) -> None:
    axes.set_facecolor(LIGHT.paper)
    title = f"{panel.title}: {panel.choice}" if panel.choice else panel.title
    axes.set_title(plain(title), loc="left", fontsize=9, color=LIGHT.ink)
    for mark in panel.marks:
        _mark(axes, mark)
    if any(isinstance(mark, Cloud) for mark in panel.marks):
        axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
        return
    _axis(axes, "x", panel.x)
    _axis(axes, "y", panel.y)
    axes.spines[:].set_color(LIGHT.grid)
    axes.tick_params(which="both", labelsize=8, colors=LIGHT.soft, length=0)
    axes.set_axisbelow(True)


def _axis(axes: Axes, side: Literal["x", "y"], axis: Axis) -> None:
    matplotlib_axis = axes.xaxis if side == "x" else axes.yaxis
    matplotlib_axis.set_label_text(plain(axis.label), fontsize=8, color=LIGHT.ink)
    if axis.log:
        axes.set(**{f"{side}scale": "log"})
    span = axis.span
    if axis.names:
        longest = PIXELS_PER_CHARACTER * max(map(len, axis.names))
        crowded = side == "x" and not axis.ticks and longest * len(axis.names) > axes.bbox.width
        turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        ticks = axis.ticks or range(len(axis.names))
        matplotlib_axis.set_ticks(ticks, [plain(name) for name in axis.names], **turned)
        matplotlib_axis.set_minor_formatter(NullFormatter())
        span = span or (-0.5, len(axis.names) - 0.5)
    if span:
        axes.set(**{f"{side}lim": span[::-1] if axis.down else span})
    elif axis.down:
        matplotlib_axis.set_inverted(True)
    if axis.ticks or not axis.names:
        axes.grid(axis=side, color=LIGHT.grid, lw=0.7)


def _errors(mark: Dots | Bars) -> np.ndarray | None:
    """Return the distances from the values down and up to the ends of their intervals."""
    if mark.low is None or mark.high is None:
        return None
    values = np.asarray(mark.x if mark.across else mark.y, float)
    both = np.stack([values - np.asarray(mark.low, float), np.asarray(mark.high, float) - values])
    return np.where(np.isfinite(both), np.maximum(both, 0), 0)


def _mark(axes: Axes, mark: Mark) -> None:
    match mark:
        case Line():
            color = LIGHT.series[mark.color]
            style = {"ls": ":" if mark.dashed else "-", "marker": "o" if mark.dots else None, "ms": 4}
            axes.plot(mark.x, mark.y, color=color, lw=1.8, label=plain(mark.name) or None, **style)
            if mark.low is not None and mark.high is not None:
                axes.fill_between(mark.x, mark.low, mark.high, color=color, alpha=0.18, lw=0)
        case Dots():
            _dots(axes, mark)
        case Bars():
            error = _errors(mark)
            style: Style = {"color": LIGHT.series[mark.color], "ecolor": LIGHT.ink}
            style["label"] = plain(mark.name) or None
            if mark.across:
                axes.barh(mark.y, mark.x, xerr=error, height=0.7, **style)
            else:
                width = 0.7 * (np.diff(mark.x).min() if len(mark.x) > 1 else 1)
                axes.bar(mark.x, mark.y, yerr=error, width=width, **style)
        case Bands():
            for number, (name, low, high) in enumerate(zip(mark.names, mark.low, mark.high, strict=True)):
                if number % 2 == 0:
                    axes.axhspan(low, high, color=LIGHT.grid, alpha=0.5, lw=0, zorder=0)
                style = {"fontsize": 8, "style": "italic", "color": LIGHT.soft, "va": "top", "ha": "left"}
                place = axes.get_yaxis_transform()
                axes.text(0.005, low + 0.15, plain(name), transform=place, zorder=1, **style)
        case Heat():
            _heat(axes, mark)
        case Cloud():
            color, name = LIGHT.series[mark.color], plain(mark.name)
            axes.scatter(*mark.xyz_N3.T, s=6, color=color, label=name, depthshade=True)


def _dots(axes: Axes, mark: Dots) -> None:
    color = LIGHT.series[mark.color]
    style: Style = {"fmt": SYMBOLS[mark.symbol], "ms": mark.size * 0.6, "color": color, "zorder": 3}
    style |= {"label": plain(mark.name) or None, "mfc": LIGHT.paper if mark.symbol == "diamond" else color}
    style |= {
        "clip_on": mark.symbol not in ("left", "right"),
        "xerr" if mark.across else "yerr": _errors(mark),
    }
    axes.errorbar(mark.x, mark.y, **style)
    place: Style = {"xytext": (5, 0), "va": "center"} if mark.beside else {"xytext": (3, 3)}
    place |= {"textcoords": "offset points", "annotation_clip": False}
    for x, y, text in zip(mark.x, mark.y, mark.text, strict=False):
        ink = color if mark.beside else LIGHT.ink
        axes.annotate(plain(text), (x, y), fontsize=7, color=ink, **place)


def _heat(axes: Axes, mark: Heat) -> None:
    ramp = LinearSegmentedColormap.from_list("", LIGHT.ramp)
    low, high = mark.span
    image = axes.imshow(mark.z_YX, cmap=ramp, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(plain(mark.label), fontsize=7, color=LIGHT.ink)
    bar.ax.tick_params(labelsize=7, colors=LIGHT.soft, length=0)
    bar.outline.set_visible(False)
    for y, row in enumerate(mark.text):
        for x, text in enumerate(row):
            dark = (mark.z_YX[y, x] - low) / max(high - low, 1e-9) > 0.6
            ink = LIGHT.paper if dark else LIGHT.ink
            axes.text(x, y, plain(text), ha="center", va="center", fontsize=6, color=ink)
