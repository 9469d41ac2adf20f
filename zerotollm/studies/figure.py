"""The differences of a suite as a picture: a dot and its 95 % interval for each variant, by group."""

from collections.abc import Sequence
from io import BytesIO

from zerotollm.explain.figures.markup import literal, plain
from zerotollm.studies.table import FUTURE, Row, footer, interval, measure

COLORS = {"better": "#1a7f5a", "worse": "#c0392b", "no difference that matters": "#2563eb"}
OTHER = "#6b7280"
BAND = "#f4f5f7"


def shown(rows: Sequence[Row]) -> list[Row]:
    """The rows with a difference, by group in alphabetical order, the best of a group first."""
    compared = [
        row for row in rows if row["shared"]["difference"] is not None and row["shared"]["verdict"] != FUTURE
    ]
    return sorted(compared, key=lambda row: (row["group"], row["shared"]["difference"], row["variant"]))


def title(rows: Sequence[Row]) -> str:
    return f"Validation {measure(rows)}: difference to the base"


def limit(rows: Sequence[Row]) -> float:
    """Half the width of the axis: so that one variant far off does not squeeze the others, three times what the
    intervals of three quarters of them stay within, or all where that is less."""
    reaches = sorted(
        max(abs(row["shared"][key] or row["shared"]["difference"]) for key in ("low", "high")) for row in rows
    )
    return max(1e-6, 1.08 * min(reaches[-1], 3 * reaches[(3 * len(reaches) - 1) // 4]))


def label(row: Row) -> str:
    """The numbers of a row, in words of a figure."""
    comparison = row["shared"]
    return f"{comparison['difference']:+.4f}{interval(comparison)}".replace("-", "\N{MINUS SIGN}")


def png(rows: Sequence[Row]) -> bytes:
    """A PNG, without a date: the same rows give the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dots = shown(rows)
    figure = Figure(figsize=(9.5, 1.5 + 0.27 * max(1, len(dots))), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edge = limit(dots) if dots else 1.0
    for y, row in enumerate(dots):
        comparison = row["shared"]
        color, x = COLORS.get(comparison["verdict"], OTHER), comparison["difference"]
        if comparison["low"] is not None:
            low, high = max(-edge, comparison["low"]), min(edge, comparison["high"])
            if low < high:
                axes.plot(
                    [low, high], [y, y], color=color, lw=2.2, alpha=0.55, solid_capstyle="butt", zorder=2
                )
        marker = ">" if x > edge else "<" if x < -edge else "o"
        axes.plot([min(edge, max(-edge, x))], [y], marker, color=color, ms=6, zorder=3, clip_on=False)
        axes.text(
            1.02, y, label(row), transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=color
        )
    for number, (first, last, group) in enumerate(_bands(dots)):
        if number % 2 == 0:
            axes.axhspan(first - 0.5, last + 0.5, color=BAND, zorder=0, lw=0)
        axes.text(
            -edge * 0.99,
            first - 0.32,
            plain(group),
            va="top",
            ha="left",
            fontsize=8,
            style="italic",
            color=OTHER,
            zorder=1,
        )
    axes.axvline(0.0, color="#111827", lw=1, zorder=1)
    axes.set_xlim(-edge, edge)
    axes.set_ylim(max(1, len(dots)) - 0.5, -0.5)
    axes.set_yticks(range(len(dots)), [plain(row["variant"]) for row in dots], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e7eb", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(
        f"{measure(rows)}; left of 0 is better than the base. Bars: 95 % intervals, each of its row alone.\n"
        "Verdicts, corrected for all rows: green better, red worse, blue no difference that matters, gray none shown",
        fontsize=9,
    )
    axes.set_title(title(rows), fontsize=11, loc="left")
    out = BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def _bands(dots: Sequence[Row]) -> list[tuple[int, int, str]]:
    """First and last row of each group."""
    places: dict[str, list[int]] = {}
    for y, row in enumerate(dots):
        places.setdefault(row["group"], []).append(y)
    return [(ys[0], ys[-1], group) for group, ys in places.items()]


def html(rows: Sequence[Row]) -> str:
    """The same picture as one self-contained page: hover for what a variant is, zoom and hide what is in the way."""
    import plotly.graph_objects as go

    dots = shown(rows)
    figure = go.Figure()
    for verdict in dict.fromkeys(row["shared"]["verdict"] for row in dots):
        chosen = [row for row in dots if row["shared"]["verdict"] == verdict]
        comparisons = [row["shared"] for row in chosen]
        figure.add_scatter(
            x=[c["difference"] for c in comparisons],
            y=[[literal(row[name]) for row in chosen] for name in ("group", "variant")],
            error_x={
                "array": [
                    (c["high"] if c["high"] is not None else c["difference"]) - c["difference"]
                    for c in comparisons
                ],
                "thickness": 2,
                "width": 0,
            },
            mode="markers",
            marker={"size": 9, "color": COLORS.get(verdict, OTHER)},
            name=verdict,
            text=[
                f"<b>{literal(row['variant'])}</b>: {literal(row['sentence'])}<br>{literal(row['paper'])}<br>"
                f"{label(row)}"
                for row in chosen
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    edge = limit(dots) if dots else 1.0
    figure.add_vline(x=0.0, line_width=1)
    figure.update_layout(
        title=title(rows),
        template="plotly_white",
        height=180 + 24 * len(dots),
        xaxis={"title": f"{measure(rows)}; left of 0 is better than the base", "range": [-edge, edge]},
        yaxis={
            "autorange": "reversed",
            "categoryorder": "array",
            "automargin": True,
            "tickfont": {"size": 11},
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"l": 10, "r": 10, "t": 90, "b": 60},
    )
    body = figure.to_html(full_html=False, include_plotlyjs=True, div_id="differences")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Ablations</title></head>\n'
        f'<body style="font-family: sans-serif; max-width: 1100px; margin: auto">\n{body}\n<p>{footer(rows)}</p>\n'
        "</body></html>\n"
    )
