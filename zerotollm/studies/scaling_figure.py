"""The picture of a scaling law: the runs, the law's curves through them, and the larger run that it predicts."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from zerotollm.explain.figures.marks import Axis, Dots, Line, Mark, Panel, said
from zerotollm.explain.figures.palette import ORDERED
from zerotollm.explain.figures.picture import Picture
from zerotollm.studies.scaling_law import COVER, Fit, Point, Prediction, optimal_parameters
from zerotollm.studies.scaling_report import budgets

NEXT, GRAY = 1, 6
"""Palette indices of the larger run and of the best sizes."""
POINTS_OF_CURVE = 80


class Curve(NamedTuple):
    """Runs of one size or of one compute budget, and the law's curve through them."""

    label: str
    line_x: np.ndarray
    line_y: np.ndarray
    x: list[float]
    runs: list[Point]


def picture(fit: Fit, prediction: Prediction, measured: Point) -> Picture:
    """Return two panels: loss over tokens for each size, and loss over sizes for each compute budget."""
    sizes, costs = by_size(fit, measured), by_budget(fit, measured)
    losses = [*(point.bpb for point in fit.points), measured.bpb, prediction.low, prediction.high]
    losses += [curve.line_y[-1] for curve in (*sizes, *costs)]
    room = 0.08 * (max(losses) - min(losses))
    loss = Axis("validation loss, bits per byte", span=(min(losses) - room, max(losses) + room))
    law = fit.law
    best = Line(*best_line(fit, measured), "best size for each compute", GRAY, dashed=True)
    titles = "Loss over training tokens, for each size", "Loss over size, for each compute budget"
    over_tokens = _panel(titles[0], "tokens trained on, D", loss, sizes, prediction)
    over_sizes = _panel(titles[1], "parameters, N", loss, costs, prediction, best)
    return Picture(
        f"L(N, D) = {law.E:.2f} + {law.A:.3g} / N^{law.alpha:.2f} + {law.B:.3g} / D^{law.beta:.2f}",
        (over_tokens, over_sizes),
        f"Points are runs, solid curves the law fitted to them. The law predicts {prediction.value:.4f} bits per byte "
        f"for the larger run, {COVER:.0%} interval {prediction.low:.4f} to {prediction.high:.4f}; measured: "
        f"{measured.bpb:.4f}.",
    )


def by_size(fit: Fit, measured: Point) -> list[Curve]:
    """Return a curve of loss over tokens for each size, that of the larger run last."""
    tokens = [point.tokens for point in (*fit.points, measured)]
    line = np.geomspace(min(tokens) / 1.15, max(tokens) * 1.15, POINTS_OF_CURVE)
    sizes = sorted({p.parameters for p in fit.points})
    groups = [[p for p in fit.points if p.parameters == size] for size in sizes]
    curves = []
    for runs in (*groups, [measured]):
        x, fitted = [float(p.tokens) for p in runs], fit.law(float(runs[0].parameters), line)
        curves.append(Curve(f"N = {human(runs[0].parameters)}", line, fitted, x, runs))
    return curves


def by_budget(fit: Fit, measured: Point) -> list[Curve]:
    """Return a curve of loss over size for each compute budget that several runs share, that of the larger run last."""
    sizes = [point.parameters for point in (*fit.points, measured)]
    line = np.geomspace(min(sizes) / 1.15, max(sizes) * 1.15, POINTS_OF_CURVE)
    curves = []
    for runs in (*(group for group in budgets(fit.points) if len(group) > 1), [measured]):
        x = [float(p.parameters) for p in runs]
        # A curve stays near its runs: other sizes could hardly be trained with this budget.
        lowest, highest = (x[0] / 4, np.inf) if runs[0] is measured else (min(x) / 1.3, max(x) * 1.3)
        near, compute = line[(line > lowest) & (line < highest)], runs[0].compute
        curves.append(Curve(f"C = {power(compute)}", near, fit.law(near, compute / 6 / near), x, runs))
    return curves


def best_line(fit: Fit, measured: Point) -> tuple[list[float], list[float]]:
    """Return N and loss of the best size for each compute, as far as N is among the sizes trained."""
    computes = [point.compute for point in (*fit.points, measured)]
    sizes = [point.parameters for point in (*fit.points, measured)]
    xs, ys = [], []
    for compute in np.geomspace(min(computes), max(computes), POINTS_OF_CURVE).tolist():
        best = optimal_parameters(fit.law, compute)
        if min(sizes) <= best <= max(sizes):
            xs.append(best)
            ys.append(fit.law(best, compute / 6 / best))
    return xs, ys


def human(number: float) -> str:
    """Return 950, 86k, 2.1M or 1.2G: two digits, or the whole number below a thousand of its unit."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            return f"{scaled:.0f}{letter}" if scaled >= 9.95 else f"{scaled:.1f}{letter}"
    return f"{number:.0f}"


def power(number: float) -> str:
    """Return two digits and the exponent: 2.5e11."""
    return f"{number:.2g}".replace("e+", "e")


def _panel(
    title: str, label: str, loss: Axis, curves: list[Curve], prediction: Prediction, *marks: Mark
) -> Panel:
    *fitted, larger = curves
    shades = [ORDERED[round(i * (len(ORDERED) - 1) / max(1, len(fitted) - 1))] for i in range(len(fitted))]
    out = [*marks]
    for curve, color, y in zip(curves, [*shades, NEXT], _label_heights(curves, loss), strict=True):
        is_larger = curve is larger
        out.append(Line(curve.line_x, curve.line_y, "", color, dashed=is_larger))
        out.append(Dots([curve.line_x[-1]], [y], "", color, text=(curve.label,), symbol="none", beside=True))
        _, parameters, tokens, bpb = zip(*curve.runs, strict=True)
        hover = said("{:,} parameters, {:,} tokens: {:.4f} bits per byte", parameters, tokens, bpb)
        if not is_larger:
            name = "runs, with the law fitted to them" if curve is fitted[-1] else ""
            out.append(Dots(curve.x, bpb, name, color, hover=hover, size=10))
            continue
        value, low, high = [prediction.value], [prediction.low], [prediction.high]
        off = abs(bpb[0] / prediction.value - 1)
        name = f"predicted: {prediction.value:.4f}, {COVER:.0%} interval"
        out.append(Dots(curve.x, value, name, NEXT, low, high, hover=(name,), size=14, symbol="diamond"))
        name = f"then measured: {bpb[0]:.4f}, {off:.1%} off"
        out.append(Dots(curve.x, bpb, name, NEXT, hover=hover, size=11, symbol="star"))
    xs = [x for curve in curves for x in (*curve.x, curve.line_x[0], curve.line_x[-1])]
    span = (min(xs) / 1.1, max(xs) * 1.1)
    decades = range(int(np.floor(np.log10(span[0]))), int(np.ceil(np.log10(span[1]))))
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 3, 5) if span[0] <= m * 10.0**d <= span[1]]
    x = Axis(label, names=tuple(map(human, ticks)), ticks=tuple(ticks), log=True, span=span)
    return Panel(title, tuple(out), x, loss, height=520, wide=True)


def _label_heights(curves: list[Curve], loss: Axis) -> list[float]:
    """Return the heights of the curves' right ends, moved up if one is too close to the next below."""
    low, high = loss.span or (0, 1)
    heights = [float(curve.line_y[-1]) for curve in curves]
    for below, above in pairwise(sorted(range(len(heights)), key=heights.__getitem__)):
        heights[above] = max(heights[above], heights[below] + 0.035 * (high - low))
    return heights
