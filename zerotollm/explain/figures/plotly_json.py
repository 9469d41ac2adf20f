"""Panels as JSON values for plotly.js.

Colors are names (`@0` to `@12`, `@ink`, `@ramp`, ...) until a palette is chosen, in a report by the page's script.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from zerotollm.explain.figures.marks import (
    Axis,
    Bands,
    Bars,
    Cloud,
    Dots,
    Heat,
    Line,
    Mark,
    Panel,
    Series,
    Symbol,
    Values,
)  # fmt: skip
from zerotollm.explain.figures.palette import LIGHT, Palette
from zerotollm.types import Json

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
SYMBOLS: dict[Symbol, str] = {
    "circle": "circle", "star": "star", "diamond": "diamond-open", "left": "triangle-left", "right": "triangle-right",
}  # fmt: skip
TRANSPARENT = "rgba(0,0,0,0)"
LAYOUT: Json = {
    "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
    "paper_bgcolor": TRANSPARENT,
    "plot_bgcolor": TRANSPARENT,
    "font": {"family": FONT, "size": 12, "color": "@ink"},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
    "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@soft", "font": {"color": "@ink", "family": FONT}},
    "hovermode": "closest",
    "barmode": "group",
    "bargap": 0.25,
}
SPACE: Json = {
    "camera": {"eye": {"x": 1.35, "y": 1.35, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.1}},
    "aspectmode": "cube",
} | {
    f"{axis}axis": {
        "showticklabels": False,
        "showspikes": False,
        "gridcolor": "@grid",
        "zerolinecolor": "@grid",
        "showbackground": False,
        "title": {"text": f"component {number}"},
    }
    for number, axis in enumerate("xyz", 1)
}
ONLY_HOVER_TEXT = {"hovertemplate": "%{hovertext}<extra></extra>"}


def panel_json(panel: Panel, compact: bool = False) -> Json:
    """Return `data` and `layout` of a panel: JSON values with named colors.

    If `compact`, a heat map carries its `hover_template` as `meta`, and the page's script makes the texts of its cells.
    """
    data = [trace for mark in panel.marks for trace in _traces(mark, panel, compact)]
    for trace in data:
        if not trace.get("name"):
            trace["showlegend"] = False
    layout = LAYOUT | {
        "height": panel.height,
        "showlegend": sum(trace.get("showlegend", True) for trace in data) > (0 if panel.wide else 1),
    }
    if any(isinstance(mark, Cloud) for mark in panel.marks):
        layout |= {"scene": SPACE, "margin": {"l": 0, "r": 0, "t": 12, "b": 0}}
        return {"data": data, "layout": layout}
    layout |= {"xaxis": _axis(panel.x), "yaxis": _axis(panel.y) | {"tickangle": 0}}
    labels = [text for mark in panel.marks if isinstance(mark, Dots) and mark.beside for text in mark.text]
    if labels:
        layout["margin"] = LAYOUT["margin"] | {"r": 16 + 7 * max(map(len, labels))}
    for mark in panel.marks:
        if isinstance(mark, Bands):
            layout |= _bands(mark)
    return {"data": data, "layout": layout}


def _axis(axis: Axis) -> Json:
    out: Json = {
        "title": {"text": literal(axis.label), "standoff": 8},
        "gridcolor": "@grid",
        "zerolinecolor": "@grid",
        "linecolor": "@grid",
        "tickfont": {"color": "@soft"},
        "automargin": True,
        "type": "log" if axis.log else "linear",
    }
    if axis.log and axis.span is None:
        out["dtick"] = 1
    span = axis.span
    if axis.names:
        out |= {
            "tickvals": list(axis.ticks or range(len(axis.names))),
            "ticktext": [literal(name) for name in axis.names],
            "tickangle": "auto" if max(map(len, axis.names)) < 5 or len(axis.names) < 9 else -45,
            "showgrid": bool(axis.ticks),
            "zeroline": False,
        }
        span = span or (-0.5, len(axis.names) - 0.5)
    if span:
        # Rounded as the data are: plotly hides points beyond the range.
        ends = np.array(numbers(span), float)
        out["range"] = (np.log10(ends) if axis.log else ends).tolist()
        if axis.down:
            out["range"].reverse()
    elif axis.down:
        out["autorange"] = "reversed"
    return out


def _bands(mark: Bands) -> Json:
    """Return shapes and annotations of a layout."""
    rows = list(zip(mark.names, numbers(mark.low), numbers(mark.high), strict=True))
    rectangle = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "line": {"width": 0}}
    rectangle |= {"fillcolor": "@grid", "opacity": 0.5}
    label = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "top", "showarrow": False}
    label |= {"font": {"size": 11, "color": "@soft"}}
    return {
        "shapes": [rectangle | {"y0": low, "y1": high} for _, low, high in rows[::2]],
        "annotations": [label | {"y": low, "text": f"<i>{literal(name)}</i>"} for name, low, _ in rows],
    }


def literal(text: object) -> str:
    """Return text that plotly shows as it is written: plotly reads tags and entities in labels and hover texts."""
    return escape(str(text), quote=False).replace("\n", "<br>")


def numbers(values: Values, digits: int = 5) -> list[float | None]:
    """Return the values rounded to significant digits, for a small page; None for one that is not finite."""
    out = []
    for value in np.asarray(values, float).ravel().tolist():
        if not np.isfinite(value):
            out.append(None)
        else:
            short = float(f"{value:.{digits}g}")
            out.append(int(short) if short == int(short) and abs(short) < 1e15 else short)
    return out


def _hover(texts: tuple[str, ...]) -> Json:
    return {"hovertext": [literal(text) for text in texts]} | ONLY_HOVER_TEXT if texts else {}


def _traces(mark: Mark, panel: Panel, compact: bool) -> list[Json]:
    match mark:
        case Line():
            return _line(mark)
        case Dots():
            return [_dots(mark)]
        case Bars():
            bars = {"type": "bar", "orientation": "h" if mark.across else "v"} | _series(mark)
            bars["marker"] = {"color": f"@{mark.color}"}
            if mark.text:
                bars |= {"text": [literal(text) for text in mark.text], "textposition": "auto"}
            return [bars | _error_bars(mark, "@ink")]
        case Bands():
            return []
        case Heat():
            return [_heat(mark, panel, compact)]
        case Cloud():
            cloud = {
                "type": "scatter3d",
                "mode": "markers",
                "name": literal(mark.name),
                "marker": {"color": f"@{mark.color}", "size": 3.5, "opacity": 0.85},
                "hovertext": [literal(repr(text)) for text in mark.text],
                "hovertemplate": "%{hovertext}<extra>" + literal(mark.name) + "</extra>",
            }
            return [cloud | {axis: numbers(mark.xyz_N3[:, i], 4) for i, axis in enumerate("xyz")}]


def _series(mark: Series) -> Json:
    return {"name": literal(mark.name), "x": numbers(mark.x), "y": numbers(mark.y)} | _hover(mark.hover)


def _error_bars(mark: Dots | Bars, color: str) -> Json:
    if mark.low is None or mark.high is None:
        return {}
    values = np.asarray(mark.x if mark.across else mark.y, float)
    bars = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 0, "color": color}
    bars["array"] = numbers(np.asarray(mark.high) - values)
    bars["arrayminus"] = numbers(values - np.asarray(mark.low))
    return {"error_x" if mark.across else "error_y": bars}


def _line(mark: Line) -> list[Json]:
    style = {"color": f"@{mark.color}", "width": 2, "dash": "dot" if mark.dashed else "solid"}
    mode = "lines+markers" if mark.dots else "lines"
    line = {"type": "scatter", "mode": mode, "line": style} | _series(mark)
    if mark.low is None or mark.high is None:
        return [line]
    points = [p for p in zip(*map(numbers, (mark.x, mark.low, mark.high)), strict=True) if None not in p[1:]]
    back = points[::-1]
    interval = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    interval |= {"showlegend": False, "x": [x for x, _, _ in points + back]}
    interval["y"] = [high for _, _, high in points] + [low for _, low, _ in back]
    return [interval | {"fill": "toself", "fillcolor": f"@{mark.color}", "opacity": 0.18}, line]


def _dots(mark: Dots) -> Json:
    modes = [*(["markers"] if mark.symbol != "none" else []), *(["text"] if mark.text else [])]
    marker = {"color": f"@{mark.color}", "size": mark.size, "symbol": SYMBOLS.get(mark.symbol, "circle")}
    trace: Json = {"type": "scatter", "mode": "+".join(modes), "marker": marker} | _series(mark)
    trace["cliponaxis"] = not mark.text and mark.symbol not in ("left", "right")
    if mark.text:
        trace |= {"text": [literal(text) for text in mark.text], "textposition": "top center"}
    if mark.beside:
        trace |= {"text": [f"\u00a0\u00a0{text}" for text in trace["text"]], "textposition": "middle right"}
        trace["textfont"] = {"color": f"@{mark.color}", "size": 11}
    return trace | _error_bars(mark, f"@{mark.color}")


def _heat(mark: Heat, panel: Panel, compact: bool) -> Json:
    trace: Json = {
        "type": "heatmap",
        "z": [numbers(row, 3) for row in mark.z_YX],
        "zmin": mark.span[0],
        "zmax": mark.span[1],
        "xgap": 1,
        "ygap": 1,
        "colorscale": "@ramp",
        "colorbar": {
            "title": {"text": literal(mark.label), "side": "right"},
            "thickness": 10,
            "outlinewidth": 0,
            "tickfont": {"color": "@soft"},
        },
    }
    if mark.text:
        trace |= {"text": _cells(mark.text), "texttemplate": "%{text}", "textfont": {"size": 10}}
    texts, template = mark.hover, mark.hover_template
    if template and compact:
        return trace | ONLY_HOVER_TEXT | {"meta": literal(template)}
    if template:
        texts = [
            [template.format(x=x, y=y, z=f"{z:.3g}") for x, z in zip(panel.x.names, row, strict=True)]
            for y, row in zip(panel.y.names, mark.z_YX, strict=True)
        ]
    return trace | (ONLY_HOVER_TEXT | {"hovertext": _cells(texts)} if texts else {})


def _cells(texts: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[literal(text) for text in row] for row in texts]


def colored(value: Any, palette: Palette) -> Any:
    """Return a JSON value with the colors of a palette in place of their names."""
    if isinstance(value, dict):
        # Only keys of colors are looked up: a text of the corpus may begin with @.
        return {
            k: _color(v, palette) if k.endswith(("color", "colorscale")) else colored(v, palette)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [colored(v, palette) for v in value] if value and isinstance(value[0], dict) else value
    return value


def _color(name: Any, palette: Palette) -> Any:
    if not isinstance(name, str) or not name.startswith("@"):
        return name
    color = palette.series[int(name[1:])] if name[1:].isdigit() else getattr(palette, name[1:])
    return color if isinstance(color, str) else [list(stop) for stop in color]


def page(title: str, panels: Sequence[Panel], caption: str = "") -> str:
    """Return a self-contained HTML page."""
    parts = []
    for number, panel in enumerate(panels):
        figure = in_script(colored(panel_json(panel), LIGHT))
        heading = f"{panel.title}: {panel.choice}" if panel.choice else panel.title
        parts.append(
            f"<h2>{escape(heading)}</h2><div id='p{number}'></div>"
            f"<script>{{const f = {figure}; Plotly.newPlot('p{number}', f.data, f.layout, "
            "{responsive: true, displaylogo: false})}</script>"
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<script>{get_plotlyjs()}</script></head>\n"
        f'<body style="font-family: {FONT}; max-width: 1000px; margin: auto">\n<h1>{escape(title)}</h1>\n'
        + "\n".join(parts)
        + f"\n<p>{escape(caption)}</p>\n</body></html>\n"
    )


def in_script(value: object) -> str:
    """Return JSON that can stand in a script element: no text in it can end that element or begin another."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
