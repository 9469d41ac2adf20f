"""Pictures of a whole run: its curves, what it learned when, what it writes, and other runs beside it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zerotollm.explain.figures.marks import Axis, Dots, Line, Panel, said
from zerotollm.explain.figures.picture import Picture

if TYPE_CHECKING:
    from zerotollm.explain.generation import Generation
    from zerotollm.explain.learning import Learning

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


def curves(lines: Sequence[Mapping[str, Any]]) -> Picture:
    """Training curves, from the lines of metrics.jsonl."""
    flat = [line | line.get("timing", {}) for line in lines]
    panels = []
    for title, field, unit, held_out in CURVES:
        marks = [
            _curve(flat, name, label, color)
            for name, label, color in ((field, "training", 0), (held_out, "validation", 1))
            if name and any(name in line for line in flat)
        ]
        if marks:
            panels.append(Panel(title, tuple(marks), Axis("step"), Axis(unit), height=280))
    return Picture("Training", tuple(panels))


def _curve(flat: Sequence[Mapping[str, Any]], field: str, label: str, color: int) -> Line:
    points = [(line["step"], line[field]) for line in flat if line.get(field) is not None]
    points = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, MOST).astype(int))]
    hover = tuple(f"step {step:,}, {label}: {value:,.6g}" for step, value in points)
    return Line(*zip(*points, strict=True), name=label, color=color, hover=hover, dots=len(points) < 40)


def beside(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Validation bits per byte of runs, name -> lines of metrics.jsonl, against tokens trained on."""
    marks = []
    for number, (name, lines) in enumerate(runs.items()):
        known = [(line["step"], line["tokens"]) for line in lines if "tokens" in line]
        held_out = [
            (line["step"], line["validation_bpb"]) for line in lines if line.get("validation_bpb") is not None
        ]
        if known and held_out:
            # It is measured between two training lines, and each step has as many tokens as the next.
            at = np.interp([step for step, _ in held_out], *zip(*known, strict=True))
            points = [(round(x), bpb) for x, (_, bpb) in zip(at, held_out, strict=True)]
            hover = tuple(f"{name}, {x:,} tokens: {y:.4f} bits per byte" for x, y in points)
            marks.append(
                Line(*zip(*points, strict=True), name=name, color=number % 7, hover=hover, dots=True)
            )
    axes = Axis("tokens trained on"), Axis("validation bits per byte")
    return Picture(
        "Beside other runs", (Panel("Bits per byte as they learn", tuple(marks), *axes),) if marks else ()
    )


def learning(found: "Learning") -> Picture:
    """Loss of tokens by frequency and by place in the word, and induction, over the checkpoints."""

    def grouped(title: str, names: tuple[str, ...], estimate: Any) -> Panel:
        value, low, high = (np.asarray(x) for x in estimate)
        marks = tuple(
            Line(
                found.steps_Y,
                value[:, g],
                name,
                g,
                low[:, g],
                high[:, g],
                said(
                    "step {:,}, {}: {:.3f} [{:.3f}, {:.3f}]",
                    found.steps_Y,
                    name,
                    value[:, g],
                    low[:, g],
                    high[:, g],
                ),
                dots=True,
            )
            for g, name in enumerate(names)
            if not np.isnan(value[:, g]).all()
        )
        return Panel(title, marks, Axis("step"), Axis("nats per token"), height=380)

    groups = (
        grouped("Loss by frequency of the token", found.band_names, found.band_YG),
        grouped("Loss by place in the word", found.part_names, found.part_YG),
    )
    if found.induction_Y is None:
        return Picture("What it learned when", groups, found.sentence())
    value, low, high = found.induction_Y
    hover = said("step {:,}: {:+.3f} [{:+.3f}, {:+.3f}] nats", found.steps_Y, value, low, high)
    gain = Line(found.steps_Y, value, "", 0, low, high, hover, dots=True)
    panels = (
        *groups,
        Panel(
            "Induction: what repeating random tokens saves",
            (gain,),
            Axis("step"),
            Axis("nats per token"),
            height=380,
        ),
    )
    return Picture("What it learned when", panels, found.sentence())


def generation(found: "Generation") -> Picture:
    """Its own texts beside real ones, measure by measure."""
    heeds = "Does it heed its source?" if found.sources else "Do its halves belong together?"
    measures = (
        ("Longest copied span", "longest_copy", "tokens"),
        ("Repetition", "repetition", "share of 4-grams that came before"),
        ("Bits per byte", "bits_per_byte", "bits per byte"),
        (heeds, "coherence", "nats per token"),
    )
    panels = []
    for title, field, unit in measures:
        marks = []
        for row, (name, side, color) in enumerate((("its own", found.own, 0), ("real", found.real, 1))):
            e = getattr(side, field)
            marks.append(
                Dots(
                    [e.value],
                    [row],
                    name,
                    color,
                    [e.low],
                    [e.high],
                    across=True,
                    hover=(f"{name}: {e} {unit}",),
                    size=10,
                )
            )
        axes = Axis(unit), Axis(names=("its own", "real"), down=True)
        panels.append(Panel(title, tuple(marks), *axes, height=190))
    return Picture("Meaning or only grammar?", tuple(panels), found.sentence())
