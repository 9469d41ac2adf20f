"""A scaling law in words and numbers: pure functions of the fit."""

import json
from collections.abc import Sequence
from operator import attrgetter

from zerotollm.studies.scaling_law import (
    COVER,
    EXPONENTS,
    Fit,
    Point,
    Prediction,
    is_wide,
    optimal_parameters,
)

CONSTANTS = {
    "E": "bits per byte that no size and no amount of text would remove",
    "A": "bits per byte, at N = 1",
    "alpha": "gain from size",
    "B": "bits per byte, at D = 1",
    "beta": "gain from text",
    "exponent": "best N ~ C^a, best D ~ C^(1 - a)",
}
"""Fields and properties of a law, and their meaning."""


def run_line(point: Point, epochs: float) -> str:
    """Return one finished run in a line."""
    return (
        f"{point.parameters:,} parameters, {point.tokens:,} tokens ({epochs:.2f} epochs): "
        f"{point.bpb:.4f} bits per byte"
    )


def law_lines(fit: Fit) -> list[str]:
    """Return the constants with their intervals, and which of them are hardly known."""
    source = f"{COVER:.0%} intervals from {len(fit.resamples)} resamples"
    lines = [f"bits per byte = E + A / N^alpha + B / D^beta, {source}"]
    for name, meaning in CONSTANTS.items():
        low, high = fit.interval(attrgetter(name))
        label, value = "a" if name == "exponent" else name, getattr(fit.law, name)
        doubt = _doubt(fit, name, low, high)
        lines.append(f"  {label:6}{value:10.4g}   {low:.4g} to {high:.4g}{doubt}   ({meaning})")
    return lines


def _doubt(fit: Fit, name: str, low: float, high: float) -> str:
    if name == "E" and low < 0.01 * min(point.bpb for point in fit.points):
        return "; not distinguishable from 0"
    if name in ("alpha", "beta") and (low < 1.01 * EXPONENTS[0] or high > 0.99 * EXPONENTS[1]):
        return "; as wide as its bounds, so that it says little"
    return "; so wide that it says little" if is_wide(low, high) else ""


def prediction_line(prediction: Prediction, parameters: int, tokens: int) -> str:
    """Return the prediction for the larger run."""
    return (
        f"predicted for {parameters:,} parameters and {tokens:,} tokens: {prediction.value:.4f} bits per byte "
        f"({prediction.low:.4f} to {prediction.high:.4f})"
    )


def outcome_line(prediction: Prediction, measured: float) -> str:
    """Return the error of the prediction."""
    error = prediction.value - measured
    where = "inside" if prediction.low <= measured <= prediction.high else "outside"
    return (
        f"measured: {measured:.4f}; the prediction was {abs(error):.4f} bits per byte ({abs(error) / measured:.2%}) "
        f"too {'high' if error > 0 else 'low'}, and the measurement lies {where} its interval"
    )


def budgets(points: Sequence[Point]) -> list[list[Point]]:
    """Group the points of equal compute, cheapest first; within 5 %, because a run has whole steps."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda p: (p.compute, p.parameters)):
        if groups and point.compute <= 1.05 * groups[-1][0].compute:
            groups[-1].append(point)
        else:
            groups.append([point])
    return [sorted(group, key=lambda p: p.parameters) for group in groups]


def table(fit: Fit, prediction: Prediction, measured: Point, extras: Sequence[tuple[int, float]]) -> str:
    """Return points, prediction and best sizes as Markdown. `extras`: (operations counted, epochs) of each run."""
    lines = [
        "| parameters N | tokens D | epochs | 6 N D | operations counted | bits per byte | fitted | residual |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for point, (flops, epochs), residual in zip(fit.points, extras[:-1], fit.residuals, strict=True):
        fitted = fit.law(point.parameters, point.tokens)
        lines.append(_row(point, flops, epochs, f"{fitted:.4f} | {residual:+.2%}"))
    error = measured.bpb / prediction.value - 1
    lines += [
        _row(measured, *extras[-1], f"predicted {prediction.value:.4f} | {error:+.2%}"),
        "",
        "| compute C | best parameters N | interval | best tokens D |",
        "|---:|---:|---:|---:|",
    ]
    computes = [group[0].compute for group in budgets([*fit.points, measured]) if len(group) > 1]
    sizes = [point.parameters for point in fit.points]
    for compute in [*computes, measured.compute]:
        best = optimal_parameters(fit.law, compute)
        low, high = fit.interval(lambda law, compute=compute: optimal_parameters(law, compute))
        trained = min(sizes) <= best <= max(sizes) and compute <= max(p.compute for p in fit.points)
        beyond = "" if trained else ", beyond what was fitted"
        tokens = compute / 6 / best
        lines.append(f"| {compute:.2g} | {best:,.0f}{beyond} | {low:,.0f} to {high:,.0f} | {tokens:,.0f} |")
    return "\n".join(lines) + "\n"


def _row(point: Point, flops: int, epochs: float, end: str) -> str:
    return (
        f"| {point.parameters:,} | {point.tokens:,} | {epochs:.2f} | {point.compute:.2e} | {flops:.2e} "
        f"| {point.bpb:.4f} | {end} |"
    )


def law_json(fit: Fit, prediction: Prediction, parameters: int, tokens: int, measured: float | None) -> str:
    """Return law.json, to six digits: the rest differs between machines. `measured` is None before the run."""
    constants = {}
    for name in CONSTANTS:
        low, high = map(_round, fit.interval(attrgetter(name)))
        constants[name] = {"value": _round(getattr(fit.law, name)), "interval": [low, high]}
    content = {
        "law": "bits per byte = E + A / N^alpha + B / D^beta; best N ~ C^exponent",
        "points": len(fit.points),
        "interval": COVER,
        "constants": constants,
        "prediction": {
            "parameters": parameters,
            "tokens": tokens,
            "bpb": _round(prediction.value),
            "interval": [_round(prediction.low), _round(prediction.high)],
            "measured": measured,
        },
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _round(number: float) -> float:
    return float(f"{number:.6g}")
