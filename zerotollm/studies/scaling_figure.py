"""A scaling law as a picture: the runs, the law's lines through them, and the run that it had to predict.

Pure functions of the fit: the same bytes each time.
"""

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any, NamedTuple

from zerotollm.studies.scaling_law import COVER, Fit, Point, Prediction, optimal_parameters
from zerotollm.studies.scaling_report import budgets

INK, MUTED, NEXT = "#222222", "#767676", "#c8102e"
LINE = 80
"""Points of a line of the law."""
SIZES = "Each size, as it sees more text"
BUDGETS = "Each budget of compute, spent on different sizes"


class Curve(NamedTuple):
    """Runs that have something in common, and the law's line for them."""

    label: str
    color: str
    line_x: list[float]
    line_y: list[float]
    x: list[float]
    y: list[float]


def picture(fit: Fit, prediction: Prediction, measured: Point) -> bytes:
    """A PNG of two panels: loss over tokens for each size, loss over sizes for each budget of compute."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The reader's own matplotlibrc must not change the bytes.
    style = {k: v for k, v in rcParamsDefault.items() if not k.startswith(("backend", "interactive"))}
    with rc_context(style | {"axes.spines.top": False, "axes.spines.right": False, "font.size": 11}):
        figure = Figure(figsize=(13, 6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        sizes, costs = by_size(fit, measured), by_budget(fit, measured)
        seen = [*(point.bpb for point in fit.points), measured.bpb, prediction.low, prediction.high]
        seen += [curve.line_y[-1] for curve in (*sizes, *costs)]
        room = 0.08 * (max(seen) - min(seen))
        left.set_ylim(min(seen) - room, max(seen) + room)
        figure.suptitle(
            _formula(fit, "$L(N, D) = {} + {} / N^{{{}}} + {} / D^{{{}}}$"), fontsize=15, color=INK
        )
        _panel(left, SIZES, sizes, "tokens trained on, D")
        _panel(right, BUDGETS, costs, "parameters, N")
        for axes, x in ((left, measured.tokens), (right, measured.parameters)):
            error = [[prediction.value - prediction.low], [prediction.high - prediction.value]]
            axes.errorbar(
                [x], [prediction.value], error, fmt="D", color=NEXT, mfc="white", ms=9, capsize=6, zorder=4
            )
            axes.plot([x], [measured.bpb], "*", color=NEXT, ms=13, mec="white", mew=0.6, zorder=5)
        left.set_ylabel("validation loss, bits per byte")
        best_x, best_y = best_line(fit, measured)
        right.plot(best_x, best_y, ":", color=INK, lw=1.5, zorder=1)
        _legend(left, prediction, measured)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def interactive(fit: Fit, prediction: Prediction, measured: Point) -> str:
    """The same panels as one HTML file that needs no network; hovering over a run shows its numbers."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=(SIZES, BUDGETS), horizontal_spacing=0.04)
    panels = ((by_size(fit, measured), "D"), (by_budget(fit, measured), "N"))
    for column, (curves, letter) in enumerate(panels, 1):
        hover = f"%{{fullData.name}}<br>{letter} = %{{x:,.0f}}<br>%{{y:.4f}} bits per byte<extra></extra>"
        for curve in curves:
            common = {"name": curve.label, "legendgroup": curve.label, "hovertemplate": hover}
            line = {"color": curve.color, "width": 1.5, "dash": "dash" if curve is curves[-1] else "solid"}
            figure.add_trace(
                Scatter(x=curve.line_x, y=curve.line_y, mode="lines", line=line, showlegend=False, **common),
                1,
                column,
            )
            marker = (
                {"color": curve.color, "size": 14, "symbol": "star"}
                if curve is curves[-1]
                else {
                    "color": curve.color,
                    "size": 9,
                }
            )
            figure.add_trace(
                Scatter(x=curve.x, y=curve.y, mode="markers", marker=marker, **common), 1, column
            )
        interval = {
            "array": [prediction.high - prediction.value],
            "arrayminus": [prediction.value - prediction.low],
        }
        figure.add_trace(
            Scatter(
                x=curves[-1].x,
                y=[prediction.value],
                error_y=interval,
                mode="markers",
                marker={"color": NEXT, "size": 11, "symbol": "diamond-open"},
                name=f"predicted, with its {COVER:.0%} interval",
                showlegend=column == 1,
            ),
            1,
            column,
        )
    best_x, best_y = best_line(fit, measured)
    dotted = {"color": INK, "dash": "dot"}
    figure.add_trace(Scatter(x=best_x, y=best_y, mode="lines", line=dotted, name="best size"), 1, 2)
    figure.update_xaxes(type="log", title_text="tokens trained on, D", row=1, col=1)
    figure.update_xaxes(type="log", title_text="parameters, N", row=1, col=2)
    figure.update_yaxes(title_text="validation loss, bits per byte", row=1, col=1)
    title = _formula(fit, "L(N, D) = {} + {} / N<sup>{}</sup> + {} / D<sup>{}</sup>")
    figure.update_layout(template="simple_white", title_text=title, height=640)
    return figure.to_html(include_plotlyjs=True, full_html=True, div_id="scaling")


def by_size(fit: Fit, measured: Point) -> list[Curve]:
    """Loss over tokens, a curve for each size; the last is the larger run's."""
    import numpy as np

    sizes = sorted({point.parameters for point in fit.points})
    tokens = [point.tokens for point in (*fit.points, measured)]
    line = np.geomspace(min(tokens) / 1.15, max(tokens) * 1.15, LINE)
    curves = []
    for size, color in zip(sizes, _colors(len(sizes)), strict=True):
        of_size = [point for point in fit.points if point.parameters == size]
        label = f"N = {human(size)}"
        x, y = [float(p.tokens) for p in of_size], [p.bpb for p in of_size]
        curves.append(Curve(label, color, line.tolist(), fit.law(float(size), line).tolist(), x, y))
    return [*curves, _next(fit, measured, f"N = {human(measured.parameters)}", line, by_tokens=True)]


def by_budget(fit: Fit, measured: Point) -> list[Curve]:
    """Loss over size, a curve for each compute that several runs had; the last is the larger run's."""
    import numpy as np

    groups = [group for group in budgets(fit.points) if len(group) > 1]
    sizes = [point.parameters for point in (*fit.points, measured)]
    line = np.geomspace(min(sizes) / 1.15, max(sizes) * 1.15, LINE)
    curves = []
    for group, color in zip(groups, _colors(len(groups)), strict=True):
        compute = group[0].compute
        x, y = [float(p.parameters) for p in group], [p.bpb for p in group]
        # Near its runs only: a budget says nothing of sizes that it could hardly train.
        near = line[(line > min(x) / 1.3) & (line < max(x) * 1.3)]
        losses = fit.law(near, compute / 6 / near)
        curves.append(Curve(f"C = {power(compute)}", color, near.tolist(), losses.tolist(), x, y))
    near = line[line > measured.parameters / 4]
    return [*curves, _next(fit, measured, f"C = {power(measured.compute)}", near, by_tokens=False)]


def best_line(fit: Fit, measured: Point) -> tuple[list[float], list[float]]:
    """N and loss of the best size at each compute between the least and the most, where N is among those trained."""
    import numpy as np

    computes = [point.compute for point in (*fit.points, measured)]
    sizes = [point.parameters for point in (*fit.points, measured)]
    xs, ys = [], []
    for compute in np.geomspace(min(computes), max(computes), LINE).tolist():
        best = optimal_parameters(fit.law, compute)
        if min(sizes) <= best <= max(sizes):
            xs.append(best)
            ys.append(fit.law(best, compute / 6 / best))
    return xs, ys


def human(number: float) -> str:
    """950, 86k, 2.1M, 1.2G: two digits, or the whole number below a thousand of its unit."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            return f"{scaled:.0f}{letter}" if scaled >= 9.95 else f"{scaled:.1f}{letter}"
    return f"{number:.0f}"


def power(number: float) -> str:
    """2.5e11: two digits."""
    return f"{number:.2g}".replace("e+", "e")


def _next(fit: Fit, measured: Point, label: str, line: Any, *, by_tokens: bool) -> Curve:
    if by_tokens:
        x, losses = float(measured.tokens), fit.law(float(measured.parameters), line)
    else:
        x, losses = float(measured.parameters), fit.law(line, measured.compute / 6 / line)
    return Curve(f"{label}, predicted", NEXT, line.tolist(), losses.tolist(), [x], [measured.bpb])


def _colors(count: int) -> list[str]:
    """From light blue, small, to dark, large: an order that also a colour-blind reader sees."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis_r"](0.15 + 0.8 * i / max(1, count - 1))) for i in range(count)]


def _formula(fit: Fit, pattern: str) -> str:
    law = fit.law
    return pattern.format(
        f"{law.E:.2f}", f"{law.A:.3g}", f"{law.alpha:.2f}", f"{law.B:.3g}", f"{law.beta:.2f}"
    )


def _apart(heights: Sequence[float], least: float) -> list[float]:
    """The same heights, moved up where they stand closer than `least` to the one below."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + least)
    return moved


def _panel(axes: Any, title: str, curves: Sequence[Curve], label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(title, fontsize=12, color=INK, loc="left")
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: human(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    for curve in curves:
        held_out = curve is curves[-1]
        axes.plot(curve.line_x, curve.line_y, "--" if held_out else "-", color=curve.color, lw=1.4, zorder=2)
        if not held_out:
            axes.plot(curve.x, curve.y, "o", color=curve.color, ms=7, mec="white", mew=0.8, zorder=3)
    low, high = axes.get_ylim()
    heights = _apart([curve.line_y[-1] for curve in curves], 0.035 * (high - low))
    for curve, height in zip(curves, heights, strict=True):
        axes.annotate(
            curve.label.removesuffix(", predicted"),
            (curve.line_x[-1], height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=curve.color,
        )


def _legend(axes: Any, prediction: Prediction, measured: Point) -> None:
    from matplotlib.lines import Line2D

    off = abs(measured.bpb / prediction.value - 1)
    promised = f"predicted: {prediction.value:.4f}, {COVER:.0%} interval"
    kept = f"then measured: {measured.bpb:.4f}, {off:.1%} off"
    next_run = {"color": NEXT, "ls": "none"}
    handles = [
        Line2D([], [], color=MUTED, marker="o", ls="-", label="runs, and the law fitted to them"),
        Line2D([], [], color=INK, ls=":", label="best size for each compute"),
        Line2D([], [], **next_run, marker="D", mfc="white", label=promised),
        Line2D([], [], **next_run, marker="*", ms=12, label=kept),
    ]
    axes.legend(handles=handles, frameon=False, loc="lower left", fontsize=10)
