"""Training curves of a run, and of several runs together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zerotollm.explain.figures.marks import Axis, Line, Panel, said
from zerotollm.explain.figures.picture import Picture

MetricsLine = Mapping[str, Any]
"""A line of metrics.jsonl."""
CURVES = (
    ("Loss", "loss", "nats per token", "validation_loss"),
    ("Bits per byte", "bpb", "bits per byte", "validation_bpb"),
    ("Learning rate", "learning_rate", "", None),
    ("Norm of the gradient", "grad_norm", "", None),
    ("Speed", "tokens_per_second", "tokens/s", None),
)
"""(title, field of a training line, unit, field of a validation line)"""
MOST = 600
"""Points of a curve."""


def training_curves(lines: Sequence[MetricsLine]) -> Picture:
    """Draw the curves of `CURVES` that a run has."""
    flat = [{**line, **line.get("timing", {})} for line in lines]
    panels = []
    for title, field, unit, validation_field in CURVES:
        marks = []
        for name, label, color in ((field, "training", 0), (validation_field, "validation", 1)):
            points = [(line["step"], line[name]) for line in flat if line.get(name) is not None]
            if points:
                marks.append(_curve(points, label, color))
        if marks:
            panels.append(Panel(title, tuple(marks), Axis("step"), Axis(unit), height=280))
    return Picture("Training", tuple(panels))


def _curve(points: Sequence[tuple[int, float]], label: str, color: int) -> Line:
    points = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, MOST).astype(int))]
    hover = tuple(f"step {step:,}, {label}: {value:,.6g}" for step, value in points)
    return Line(*zip(*points, strict=True), name=label, color=color, hover=hover, dots=len(points) < 40)


def compare_runs(runs: Mapping[str, Sequence[MetricsLine]]) -> Picture:
    """Draw the validation bits per byte of runs, name -> lines, against the tokens that they were trained on."""
    marks = []
    for number, (name, lines) in enumerate(runs.items()):
        steps = [line["step"] for line in lines if "tokens" in line]
        tokens = [line["tokens"] for line in lines if "tokens" in line]
        validation = [line for line in lines if line.get("validation_bpb") is not None]
        if steps and validation:
            # Validation happens between two training lines, and every step has the same number of tokens.
            x = [round(count) for count in np.interp([line["step"] for line in validation], steps, tokens)]
            y = [line["validation_bpb"] for line in validation]
            hover = said("{}, {:,} tokens: {:.4f} bits per byte", name, x, y)
            marks.append(Line(x, y, name=name, color=number % 7, hover=hover, dots=True))
    axes = Axis("tokens trained on"), Axis("validation bits per byte")
    panels = (Panel("Bits per byte as they learn", tuple(marks), *axes),) if marks else ()
    return Picture("Beside other runs", panels)
