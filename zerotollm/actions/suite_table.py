"""The results of a suite as rows, as Markdown and as a table on the terminal: a pure function of its runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zerotollm.actions.suite_runs import Record
from zerotollm.evaluation.statistics import mean, paired_difference, standard_deviation
from zerotollm.suite import BASE

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
FUTURE = "too good to be true: sees the future"
BITS, WRONG = "bits per byte", "share of wrong labels"
"""What runs are compared by."""
LARGEST = 700.0
"""Nats a token of which the exponential is still a number of double precision."""


def make_rows(records: Iterable[Record]) -> list[Row]:
    """One row a variant, the base first, then by group and name; what `table.json` holds.

    `shared` compares runs at the rates as they stand; `tuned`, None where nothing was tuned, those at the rates
    that were best for the first seed, of the variant and of the base alike.
    """
    by_variant: dict[str, list[Record]] = {}
    for record in records:
        by_variant.setdefault(record["variant"], []).append(record)
    base = by_variant.get(BASE, [])
    ordered = sorted(by_variant.items(), key=lambda item: (item[0] != BASE, item[1][0]["group"], item[0]))
    return [_row(runs, base) for _, runs in ordered]


def best_rate(runs: Sequence[Record]) -> float | None:
    """The factor of the rates that was best for the lowest seed, by what the table compares; None where only one was
    tried, or none worked."""
    if len({run["rate"] for run in runs}) < 2:
        return None
    seed = min(run["seed"] for run in runs)
    tried = [run for run in runs if run["seed"] == seed and run["validation_bpb"] is not None]
    return min(tried, key=lambda run: (_value(run), run["rate"]))["rate"] if tried else None


def _row(runs: list[Record], base: list[Record]) -> Row:
    first = min(runs, key=lambda run: (run["rate"] != 1, run["seed"]))
    rate, base_rate = best_rate(runs), best_rate(base)
    speeds = [run["tokens_per_second"] for run in runs if run["rate"] == 1 and run["tokens_per_second"]]
    tuned = None
    if rate is not None and base_rate is not None:
        tuned = {"rate": rate} | _compared(_at(runs, rate), _at(base, base_rate))
    return {
        **{key: first[key] for key in ("variant", "group", "change", "paper", "sentence")},
        **{key: first[key] for key in ("parameters", "flops_per_token")},
        "tokens_per_second": mean(speeds) if speeds else None,
        # Of suites that train a part of the parameters; records of earlier versions have none of these.
        **{key: first.get(key) for key in ("trained_parameters", "step_bytes")},
        "seconds": mean([run["seconds"] for run in runs if run.get("seconds") is not None] or [0.0]),
        "published": first.get("published"),
        "shared": _compared(_at(runs, 1.0), _at(base, 1.0)),
        "tuned": tuned,
    }


def _at(runs: list[Record], rate: float) -> list[Record]:
    return sorted((run for run in runs if run["rate"] == rate), key=lambda run: run["seed"])


def _compared(runs: list[Record], base: list[Record]) -> Row:
    """Mean, deviation and number of the runs that were trained to the end, and their difference to the base's."""
    trained = [run for run in runs if run["outcome"] == "trained"]
    base_trained = [run for run in base if run["outcome"] == "trained"]
    of_seed, base_of_seed = ({run["seed"]: _value(run) for run in some} for some in (trained, base_trained))
    values = list(of_seed.values())
    losses = [run["validation_loss"] for run in trained if run.get("validation_loss") is not None]
    accuracies = [run["validation_accuracy"] for run in trained if run.get("validation_accuracy") is not None]
    bits = [run["validation_bpb"] for run in trained]
    bleus = [run["validation_bleu"] for run in trained if run.get("validation_bleu") is not None]
    result = {
        "runs": len(runs),
        "trained": len(values),
        "measure": WRONG if accuracies else BITS,
        "value": mean(values) if values else None,
        "bpb": mean(bits) if bits else None,
        "deviation": standard_deviation(values),
        "loss": mean(losses) if losses else None,
        "perplexity": mean([math.exp(loss) for loss in losses]) if losses and max(losses) < LARGEST else None,
        "bleu": mean(bleus) if bleus else None,
        "accuracy": mean(accuracies) if accuracies else None,
        "pairs": 0,
        "difference": None,
        "low": None,
        "high": None,
        "verdict": "",
    }
    if runs and runs[0]["variant"] == BASE:
        return result | {"verdict": "the base"}
    seeds = [seed for seed in of_seed if seed in base_of_seed]
    if seeds:
        comparison = paired_difference([base_of_seed[s] for s in seeds], [of_seed[s] for s in seeds])
        result |= asdict(comparison)
    if bleus:
        result["bleu_difference"] = _bleu_difference(trained, base_trained)
    diverged = sum(run["outcome"] == "diverged" for run in runs)
    if any(run["outcome"] == "sees the future" for run in runs):
        result["verdict"] = FUTURE
    elif diverged:
        result["verdict"] = f"diverged ({diverged} of {len(runs)})"
    return result


def _value(run: Record) -> float:
    """What runs are compared by, less being better: of a model that gives labels, the share of wrong ones."""
    accuracy = run.get("validation_accuracy")
    return run["validation_bpb"] if accuracy is None else 1.0 - accuracy


def _bleu_difference(runs: list[Record], base: list[Record]) -> Row | None:
    """Of translations, over the seeds that both sides have."""
    ours, others = ({run["seed"]: run.get("validation_bleu") for run in some} for some in (runs, base))
    seeds = [seed for seed in ours if ours[seed] is not None and others.get(seed) is not None]
    if not seeds:
        return None
    comparison = asdict(paired_difference([others[s] for s in seeds], [ours[s] for s in seeds]))
    # Of BLEU more is better; the verdict takes less to be.
    turned = {"better": "worse", "worse": "better"}
    return comparison | {"verdict": turned.get(comparison["verdict"], comparison["verdict"])}


# --- as text


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """A row among others as people read it; see `headings`."""
    speed = row["tokens_per_second"]
    shown = [
        row["group"],
        row["variant"],
        ", ".join(f"{c['field']} {c['from']} → {c['to']}" for c in row["change"]) or "-",
        f"{row['parameters']:,}",
        f"{row['flops_per_token'] / 1e6:.2f} M",
        f"{speed:,.0f}" if speed else "-",
        *_compared_cells(row["shared"]),
        *(_bleu_cells(row["shared"]) if _translated(rows) else []),
    ]
    if shows_parts(rows):
        trained, held = row["trained_parameters"], row["step_bytes"]
        shown += [
            f"{trained:,} ({trained / row['parameters']:.1%})" if trained else "-",
            f"{held / 1e6:,.0f} MB" if held else "-",
            f"{row['seconds']:,.0f} s",
        ]
    if _tuned(rows):
        comparison = row["tuned"]
        shown += [f"x {comparison['rate']:g}", *_compared_cells(comparison)] if comparison else ["-"] * 4
    return shown


def shows_parts(rows: Sequence[Row]) -> bool:
    """Whether any variant trains but a part of its parameters."""
    return any(row["trained_parameters"] not in (None, row["parameters"]) for row in rows)


def measure(rows: Sequence[Row]) -> str:
    """What the rows are compared by."""
    return rows[0]["shared"]["measure"] if rows else BITS


def _bleu_cells(comparison: Row) -> list[str]:
    bleu, difference = comparison["bleu"], comparison.get("bleu_difference")
    if bleu is None:
        return ["-", "-"]
    low = (
        f" [{difference['low']:+.2f}, {difference['high']:+.2f}]"
        if difference and difference["low"] is not None
        else ""
    )
    return [f"{bleu:.2f}", f"{difference['difference']:+.2f}{low}" if difference else "-"]


def headings(rows: Sequence[Row]) -> list[str]:
    """What stands over the columns of `cells`."""
    names = ["group", "variant", "change", "parameters", "FLOPs per token", "tokens/s"]
    compared = [f"{measure(rows)} (runs)", "difference [95 %]", "verdict"]
    names += compared + (["BLEU", "difference of BLEU"] if _translated(rows) else [])
    names += ["trained", "memory of a step", "time of a run"] if shows_parts(rows) else []
    return names + (["best rates", *(f"tuned {name}" for name in compared)] if _tuned(rows) else [])


def _translated(rows: Sequence[Row]) -> bool:
    return any(row["shared"]["bleu"] is not None for row in rows)


def _tuned(rows: Sequence[Row]) -> bool:
    return any(row["tuned"] for row in rows)


def _compared_cells(comparison: Row) -> list[str]:
    value, deviation, difference = comparison["value"], comparison["deviation"], comparison["difference"]
    noise = f" ± {deviation:.4f}" if deviation is not None else ""
    return [
        f"{value:.4f}{noise} ({comparison['trained']})" if value is not None else "-",
        f"{difference:+.4f}{interval(comparison)}" if difference is not None else "-",
        comparison["verdict"],
    ]


def interval(comparison: Row) -> str:
    """` [low, high]`, or nothing where one pair says nothing of the noise."""
    if comparison["low"] is None:
        return ""
    return f" [{comparison['low']:+.4f}, {comparison['high']:+.4f}]"


def footer(rows: Sequence[Row]) -> str:
    """How to read the table."""
    intervals = sum(row["shared"]["low"] is not None for row in rows)
    words = (
        f"Validation, {measure(rows)}: mean ± sample standard deviation over seeds; difference to the base over the "
        "same seeds, with Student's 95 % interval: better or worse only where all of it is on one side of 0. FLOPs are "
        "those of a training step."
    )
    if intervals:
        words += (
            f" Of {intervals} such intervals about {intervals * 0.05:.1f} miss the truth by chance, so a verdict "
            "close to 0 is a reason to look again, with more seeds."
        )
    return words


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, with its footer and what each variant is."""
    heads = headings(rows)
    lines = [heads, ["---"] * len(heads), *(cells(row, rows) for row in rows)]
    # A bar in a cell, as in a regular expression, would begin another one.
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "\n".join(
        f"- **{row['variant']}**: {row['sentence']} ({row['paper']})" for row in rows if row["sentence"]
    )
    return f"{table}\n\n{footer(rows)}\n\n{notes}\n"


def short_markdown(rows: Sequence[Row]) -> str:
    """The rows without sizes, speeds and notes, for a page about more than this suite; below them, at their best rates,
    those that were tuned."""
    heads = ["group", "variant", f"{measure(rows)} (runs)", "difference [95 %]", "verdict"]
    heads += ["BLEU", "difference of BLEU"] if _translated(rows) else []
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        bleu = _bleu_cells(row["shared"]) if _translated(rows) else []
        lines.append([row["group"], row["variant"], *_compared_cells(row["shared"]), *bleu])
    tuned = [
        [row["variant"], f"x {row['tuned']['rate']:g}", *_compared_cells(row["tuned"])]
        for row in rows
        if row["tuned"]
    ]
    if tuned:
        heads = ["tuned", "best rates", f"{measure(rows)} (runs)", "difference [95 %]", "verdict"]
        tuned = [heads, ["---"] * len(heads), *tuned]
    tables = ["\n".join("| " + " | ".join(line) + " |" for line in part) for part in (lines, tuned) if part]
    return "\n\n".join(tables)


def terminal_table(rows: Sequence[Row]) -> "Table":
    """The same rows for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in headings(rows):
        table.add_column(name, justify="right" if name in ("parameters", "tokens/s") else "left")
    for row in rows:
        verdict = row["shared"]["verdict"]
        style = {"better": "green", "worse": "red"}.get(verdict) or (
            "bold red" if verdict == FUTURE else None
        )
        table.add_row(*cells(row, rows), style=style)
    return table
