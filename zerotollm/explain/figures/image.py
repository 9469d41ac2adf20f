"""Pictures as PNG, by matplotlib: for papers, slides and whoever has no browser."""

from io import BytesIO
from typing import Any

import numpy as np

from zerotollm.explain.figures.markup import plain
from zerotollm.explain.figures.palette import LIGHT, Palette
from zerotollm.explain.figures.picture import Axis, Bars, Cloud, Dots, Heat, Line, Mark, Panel, Picture

COLUMNS = 3
MOST = 24
"""Panels in one image; of more the first are drawn, and how many there are is said."""


def png(picture: Picture, palette: Palette = LIGHT) -> bytes:
    """An image of all panels, without a date: the same picture gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = picture.panels[:MOST]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows + 0.7), dpi=110, layout="constrained")
    figure.set_facecolor(palette.paper)
    canvas = FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, 1):
        space = any(isinstance(mark, Cloud) for mark in panel.marks)
        axes = figure.add_subplot(rows, columns, number, **({"projection": "3d"} if space else {}))
        _panel(axes, panel, palette)
    more = f" (the first {MOST} of {len(picture.panels)})" if len(picture.panels) > MOST else ""
    figure.suptitle(plain(picture.title + more), x=0.01, ha="left", fontsize=12, color=palette.ink)
    out = BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def _panel(axes: Any, panel: Panel, palette: Palette) -> None:
    axes.set_facecolor(palette.paper)
    title = f"{panel.title}: {panel.choice}" if panel.choice else panel.title
    axes.set_title(plain(title), loc="left", fontsize=9, color=palette.ink)
    for mark in panel.marks:
        _mark(axes, mark, palette)
    if any(isinstance(mark, Cloud) for mark in panel.marks):
        for side in (axes.xaxis, axes.yaxis, axes.zaxis):
            side.set_ticklabels([])
    else:
        for axis, side, limit, scale in (
            (panel.x, axes.xaxis, axes.set_xlim, axes.set_xscale),
            (panel.y, axes.yaxis, axes.set_ylim, axes.set_yscale),
        ):
            _axis(axis, side, limit, scale, palette)
        for spine in axes.spines.values():
            spine.set_color(palette.grid)
        axes.tick_params(labelsize=8, colors=palette.soft, length=0)
        if panel.x.names and max(map(len, panel.x.names)) > 3:
            axes.tick_params(axis="x", rotation=60)
        if not any(isinstance(mark, Heat) for mark in panel.marks):
            axes.grid(color=palette.grid, lw=0.7)
            axes.set_axisbelow(True)
    if sum(bool(getattr(mark, "name", "")) for mark in panel.marks) > 1:
        axes.legend(fontsize=7, frameon=False, labelcolor=palette.ink)


def _axis(axis: Axis, side: Any, limit: Any, scale: Any, palette: Palette) -> None:
    side.set_label_text(plain(axis.label), fontsize=8, color=palette.ink)
    if axis.log:
        scale("log")
    span = axis.span
    if axis.names:
        side.set_ticks(range(len(axis.names)), [plain(name) for name in axis.names])
        span = span or (-0.5, len(axis.names) - 0.5)
    if span:
        limit(*(reversed(span) if axis.down else span))
    elif axis.down:
        side.set_inverted(True)


def _errors(mark: Dots | Bars) -> np.ndarray | None:
    if mark.low is None:
        return None
    values = np.asarray(mark.x if mark.across else mark.y, float)
    both = np.stack([values - np.asarray(mark.low, float), np.asarray(mark.high, float) - values])
    return np.where(np.isfinite(both), np.maximum(both, 0), 0)


def _mark(axes: Any, mark: Mark, palette: Palette) -> None:
    match mark:
        case Line():
            color = palette.series[mark.color]
            style = {"ls": ":" if mark.dashed else "-", "marker": "o" if mark.dots else None, "ms": 4}
            axes.plot(mark.x, mark.y, color=color, lw=1.8, label=plain(mark.name) or None, **style)
            if mark.low is not None:
                axes.fill_between(mark.x, mark.low, mark.high, color=color, alpha=0.18, lw=0)
        case Dots():
            color = palette.series[mark.color]
            around = {"xerr" if mark.across else "yerr": _errors(mark)}
            style = {"fmt": "o", "ms": mark.size * 0.6, "color": color, "label": plain(mark.name) or None}
            axes.errorbar(mark.x, mark.y, **around, **style)
            for x, y, text in zip(mark.x, mark.y, mark.text, strict=False):
                axes.annotate(
                    plain(text),
                    (x, y),
                    fontsize=7,
                    color=palette.ink,
                    xytext=(3, 3),
                    textcoords="offset points",
                )
        case Bars():
            color, error = palette.series[mark.color], _errors(mark)
            style = {"color": color, "label": plain(mark.name) or None, "ecolor": palette.ink}
            if mark.across:
                axes.barh(mark.y, mark.x, xerr=error, height=0.7, **style)
            else:
                width = 0.7 * (np.diff(mark.x).min() if len(mark.x) > 1 else 1)
                axes.bar(mark.x, mark.y, yerr=error, width=width, **style)
        case Heat():
            from matplotlib.colors import LinearSegmentedColormap

            ramp = LinearSegmentedColormap.from_list("", palette.balance if mark.diverging else palette.ramp)
            low, high = mark.span
            drawn = axes.imshow(
                mark.z_YX, cmap=ramp, vmin=low, vmax=high, aspect="auto", interpolation="nearest"
            )
            bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
            bar.set_label(plain(mark.label), fontsize=7, color=palette.ink)
            bar.ax.tick_params(labelsize=7, colors=palette.soft, length=0)
            bar.outline.set_visible(False)
            for y, row in enumerate(mark.text):
                for x, text in enumerate(row):
                    dark = (mark.z_YX[y, x] - low) / max(high - low, 1e-9) > 0.6
                    ink = palette.paper if dark and not mark.diverging else palette.ink
                    axes.text(x, y, plain(text), ha="center", va="center", fontsize=6, color=ink)
        case Cloud():
            axes.scatter(
                *mark.xyz_N3.T,
                s=6,
                color=palette.series[mark.color],
                label=plain(mark.name),
                depthshade=True,
            )
