"""Pictures as plotly.js draws them: plain dicts, made without importing plotly.

Colours stay names (`@0` to `@6`, `@ink`, `@ramp`, ...) until a palette is chosen, on a page by its script.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from zerotollm.explain.figures.markup import literal
from zerotollm.explain.figures.palette import LIGHT, Palette
from zerotollm.explain.figures.picture import Axis, Bars, Cloud, Dots, Heat, Line, Mark, Panel, Picture

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


def panel_json(panel: Panel, short: bool = False) -> dict[str, Any]:
    """`data` and `layout` of a panel, JSON values only, colours by name.

    Where it is to be `short`, a heat map that `says` a sentence has that as its `meta`, and the page's script makes a
    hover text for each cell of it.
    """
    data = [trace for mark in panel.marks for trace in _traces(mark)]
    for mark, trace in zip(panel.marks, data, strict=False):
        if isinstance(mark, Heat) and mark.says:
            trace |= {"hovertemplate": "%{hovertext}<extra></extra>"}
            trace |= {"meta": literal(mark.says)} if short else {"hovertext": _cells(mark, panel)}
    for trace in data:
        if not trace.get("name"):
            trace["showlegend"] = False
    named = sum(bool(trace.get("name")) and trace.get("showlegend", True) for trace in data) > 1
    layout: dict[str, Any] = {
        "height": panel.height,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": "@ink"},
        "showlegend": named,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        "hoverlabel": {
            "bgcolor": "@paper",
            "bordercolor": "@soft",
            "font": {"color": "@ink", "family": FONT},
        },
        "hovermode": "closest",
        "barmode": "group",
        "bargap": 0.25,
    }
    if any(isinstance(mark, Cloud) for mark in panel.marks):
        bare = {
            "showticklabels": False,
            "showspikes": False,
            "gridcolor": "@grid",
            "zerolinecolor": "@grid",
            "showbackground": False,
        }
        axes = {f"{a}axis": bare | {"title": {"text": f"component {n}"}} for n, a in enumerate("xyz", 1)}
        layout |= {
            "scene": axes
            | {
                "camera": {"eye": {"x": 1.35, "y": 1.35, "z": 0.8}, "center": {"x": 0, "y": 0, "z": -0.1}},
                "aspectmode": "cube",
            }
        }
        layout["margin"] = {"l": 0, "r": 0, "t": 12, "b": 0}
    else:
        layout |= {"xaxis": _axis(panel.x), "yaxis": _axis(panel.y) | {"tickangle": 0}}
    return {"data": data, "layout": layout}


def _axis(axis: Axis) -> dict[str, Any]:
    out: dict[str, Any] = {
        "title": {"text": literal(axis.label), "standoff": 8},
        "gridcolor": "@grid",
        "zerolinecolor": "@grid",
        "linecolor": "@grid",
        "tickfont": {"color": "@soft"},
        "automargin": True,
    }
    if axis.log:
        out |= {"type": "log", "dtick": 1} if axis.span is None else {"type": "log"}
    else:
        out["type"] = "linear"
    span = axis.span
    if axis.names:
        out |= {"tickvals": list(range(len(axis.names))), "ticktext": [literal(n) for n in axis.names]}
        out |= {"showgrid": False, "zeroline": False}
        out["tickangle"] = "auto" if max(map(len, axis.names)) < 5 or len(axis.names) < 9 else -45
        span = span or (-0.5, len(axis.names) - 0.5)
    if span:
        out["range"] = [float(np.log10(v)) if axis.log else float(v) for v in span]
        if axis.down:
            out["range"].reverse()
    elif axis.down:
        out["autorange"] = "reversed"
    return out


def numbers(values: Sequence[float] | np.ndarray, digits: int = 5) -> list[float | None]:
    """Values with a few significant digits, None for what is no number: what a page must carry."""
    out = []
    for value in np.asarray(values, float).ravel().tolist():
        if not np.isfinite(value):
            out.append(None)
        else:
            short = float(f"{value:.{digits}g}")
            out.append(int(short) if short == int(short) and abs(short) < 1e15 else short)
    return out


def _hover(texts: tuple[str, ...]) -> dict[str, Any]:
    if not texts:
        return {}
    return {"hovertext": [literal(t) for t in texts], "hovertemplate": "%{hovertext}<extra></extra>"}


def _error(mark: Dots | Bars) -> dict[str, Any]:
    """Error bars around the values, which lie along x or y."""
    if mark.low is None:
        return {}
    values = np.asarray(mark.x if mark.across else mark.y, float)
    bars = {
        "type": "data",
        "symmetric": False,
        "thickness": 1.5,
        "width": 0,
        "color": "@ink" if isinstance(mark, Bars) else f"@{mark.color}",
        "array": numbers(np.asarray(mark.high) - values),
        "arrayminus": numbers(values - np.asarray(mark.low)),
    }
    return {"error_x" if mark.across else "error_y": bars}


def _traces(mark: Mark) -> list[dict[str, Any]]:
    match mark:
        case Line():
            return _line(mark)
        case Dots():
            trace = {
                "type": "scatter",
                "mode": "markers+text" if mark.text else "markers",
                "name": literal(mark.name),
                "x": numbers(mark.x),
                "y": numbers(mark.y),
                "marker": {"color": f"@{mark.color}", "size": mark.size},
            }
            if mark.text:
                trace |= {
                    "text": [literal(t) for t in mark.text],
                    "textposition": "top center",
                    "cliponaxis": False,
                }
            return [trace | _error(mark) | _hover(mark.hover)]
        case Bars():
            trace = {
                "type": "bar",
                "name": literal(mark.name),
                "x": numbers(mark.x),
                "y": numbers(mark.y),
                "orientation": "h" if mark.across else "v",
                "marker": {"color": f"@{mark.color}"},
            }
            if mark.text:
                trace |= {"text": [literal(t) for t in mark.text], "textposition": "auto"}
            return [trace | _error(mark) | _hover(mark.hover)]
        case Heat():
            return [_heat(mark)]
        case Cloud():
            x, y, z = (numbers(column, 4) for column in mark.xyz_N3.T)
            return [
                {
                    "type": "scatter3d",
                    "mode": "markers",
                    "name": literal(mark.name),
                    "x": x,
                    "y": y,
                    "z": z,
                    "marker": {"color": f"@{mark.color}", "size": 3.5, "opacity": 0.85},
                    "hovertext": [literal(repr(t)) for t in mark.text],
                    "hovertemplate": "%{hovertext}<extra>" + literal(mark.name) + "</extra>",
                }
            ]


def _line(mark: Line) -> list[dict[str, Any]]:
    traces = []
    if mark.low is not None:
        x, low, high = (numbers(values) for values in (mark.x, mark.low, mark.high))
        kept = [i for i in range(len(x)) if low[i] is not None and high[i] is not None]
        around = [*kept, *reversed(kept)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "fill": "toself",
                "hoverinfo": "skip",
                "showlegend": False,
                "x": [x[i] for i in around],
                "y": [high[i] for i in kept] + [low[i] for i in reversed(kept)],
                "line": {"width": 0},
                "fillcolor": f"@{mark.color}",
                "opacity": 0.18,
            }
        )
    line = {
        "type": "scatter",
        "mode": "lines+markers" if mark.dots else "lines",
        "name": literal(mark.name),
        "x": numbers(mark.x),
        "y": numbers(mark.y),
        "line": {"color": f"@{mark.color}", "width": 2, "dash": "dot" if mark.dashed else "solid"},
    }
    return [*traces, line | _hover(mark.hover)]


def _heat(mark: Heat) -> dict[str, Any]:
    rows = [numbers(row, 3) for row in mark.z_YX]
    trace = {
        "type": "heatmap",
        "z": rows,
        "zmin": mark.span[0],
        "zmax": mark.span[1],
        "xgap": 1,
        "ygap": 1,
        "colorscale": "@balance" if mark.diverging else "@ramp",
        "colorbar": {
            "title": {"text": literal(mark.label), "side": "right"},
            "thickness": 10,
            "outlinewidth": 0,
            "tickfont": {"color": "@soft"},
        },
    }
    if mark.text:
        trace |= {
            "text": [[literal(t) for t in row] for row in mark.text],
            "texttemplate": "%{text}",
            "textfont": {"size": 10},
        }
    if mark.hover:
        trace |= {
            "hovertext": [[literal(t) for t in row] for row in mark.hover],
            "hovertemplate": "%{hovertext}<extra></extra>",
        }
    return trace


def _cells(mark: Heat, panel: Panel) -> list[list[str]]:
    """What each cell of a heat map says."""
    return [
        [
            literal(mark.says.format(x=panel.x.names[x], y=panel.y.names[y], z=f"{z:.3g}"))
            for x, z in enumerate(row)
        ]
        for y, row in enumerate(mark.z_YX)
    ]


def colored(value: Any, palette: Palette) -> Any:
    """The same with the colours of a palette in place of their names."""
    if isinstance(value, dict):
        # A text of the corpus may well begin with @: only what plotly takes for a colour is looked up.
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
    found = palette.series[int(name[1:])] if name[1:].isdigit() else getattr(palette, name[1:])
    return found if isinstance(found, str) else [list(stop) for stop in found]


def page(picture: Picture) -> str:
    """A self-contained page of one picture."""
    from plotly.offline import get_plotlyjs

    parts = []
    for number, panel in enumerate(picture.panels):
        drawn = in_script(colored(panel_json(panel), LIGHT))
        parts.append(
            f"<h2>{escape(panel.title)}</h2><div id='p{number}'></div>"
            f"<script>{{const f = {drawn}; Plotly.newPlot('p{number}', f.data, f.layout, "
            "{responsive: true, displaylogo: false})}</script>"
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(picture.title)}</title>\n'
        f"<script>{get_plotlyjs()}</script></head>\n"
        f'<body style="font-family: {FONT}; max-width: 1000px; margin: auto">\n<h1>{escape(picture.title)}</h1>\n'
        + "\n".join(parts)
        + f"\n<p>{escape(picture.says)}</p>\n</body></html>\n"
    )


def in_script(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end that or begin another."""
    import json

    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
