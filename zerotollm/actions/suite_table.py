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
    """The factor of the rates that was best for the lowest seed; None where only one was tried, or none worked."""
    if len({run["rate"] for run in runs}) < 2:
        return None
    seed = min(run["seed"] for run in runs)
    tried = [run for run in runs if run["seed"] == seed and run["validation_bpb"] is not None]
    return min(tried, key=lambda run: (run["validation_bpb"], run["rate"]))["rate"] if tried else None


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
    bpb = {run["seed"]: run["validation_bpb"] for run in runs if run["outcome"] == "trained"}
    base_bpb = {run["seed"]: run["validation_bpb"] for run in base if run["outcome"] == "trained"}
    values = list(bpb.values())
    trained = [run for run in runs if run["outcome"] == "trained"]
    losses = [run["validation_loss"] for run in trained if run.get("validation_loss") is not None]
    accuracies = [run["validation_accuracy"] for run in trained if run.get("validation_accuracy") is not None]
    bleus = [run["validation_bleu"] for run in trained if run.get("validation_bleu") is not None]
    result = {
        "runs": len(runs),
        "trained": len(values),
        "bpb": mean(values) if values else None,
        "deviation": standard_deviation(values),
        "loss": mean(losses) if losses else None,
        "perplexity": mean([math.exp(loss) for loss in losses]) if losses else None,
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
    seeds = [seed for seed in bpb if seed in base_bpb]
    if seeds:
        comparison = paired_difference([base_bpb[s] for s in seeds], [bpb[s] for s in seeds])
        result |= asdict(comparison)
    diverged = sum(run["outcome"] == "diverged" for run in runs)
    if any(run["outcome"] == "sees the future" for run in runs):
        result["verdict"] = FUTURE
    elif diverged:
        result["verdict"] = f"diverged ({diverged} of {len(runs)})"
    return result


# --- as text


def cells(row: Row, tuned: bool, parts: bool = False) -> list[str]:
    """A row as people read it; see `headings`."""
    speed = row["tokens_per_second"]
    shown = [
        row["group"],
        row["variant"],
        ", ".join(f"{c['field']} {c['from']} → {c['to']}" for c in row["change"]) or "-",
        f"{row['parameters']:,}",
        f"{row['flops_per_token'] / 1e6:.2f} M",
        f"{speed:,.0f}" if speed else "-",
        *_compared_cells(row["shared"]),
    ]
    if parts:
        trained, held, accuracy = row["trained_parameters"], row["step_bytes"], row["shared"]["accuracy"]
        shown += [
            f"{trained:,} ({trained / row['parameters']:.1%})" if trained else "-",
            f"{held / 1e6:,.0f} MB" if held else "-",
            f"{row['seconds']:,.0f} s",
            f"{accuracy:.4f}" if accuracy is not None else "-",
        ]
    if tuned:
        comparison = row["tuned"]
        shown += [f"x {comparison['rate']:g}", *_compared_cells(comparison)] if comparison else ["-"] * 4
    return shown


def shows_parts(rows: Sequence[Row]) -> bool:
    """Whether any variant trains but a part of its parameters."""
    return any(row["trained_parameters"] not in (None, row["parameters"]) for row in rows)


def headings(tuned: bool, parts: bool = False) -> list[str]:
    """What stands over the columns of `cells`."""
    names = ["group", "variant", "change", "parameters", "FLOPs per token", "tokens/s"]
    compared = ["bits per byte (runs)", "difference [95 %]", "verdict"]
    names += compared + (["trained", "memory of a step", "time of a run", "accuracy"] if parts else [])
    return names + (["best rates", *(f"tuned {name}" for name in compared)] if tuned else [])


def _compared_cells(comparison: Row) -> list[str]:
    bpb, deviation, difference = comparison["bpb"], comparison["deviation"], comparison["difference"]
    noise = f" ± {deviation:.4f}" if deviation is not None else ""
    return [
        f"{bpb:.4f}{noise} ({comparison['trained']})" if bpb is not None else "-",
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
        "Validation bits per byte, mean ± sample standard deviation over seeds; difference to the base over the same "
        "seeds, with Student's 95 % interval: better or worse only where all of it is on one side of 0. FLOPs are "
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
    tuned = any(row["tuned"] for row in rows)
    heads, parts = headings(tuned, shows_parts(rows)), shows_parts(rows)
    lines = [heads, ["---"] * len(heads), *(cells(row, tuned, parts) for row in rows)]
    # A bar in a cell, as in a regular expression, would begin another one.
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    notes = "\n".join(
        f"- **{row['variant']}**: {row['sentence']} ({row['paper']})" for row in rows if row["sentence"]
    )
    return f"{table}\n\n{footer(rows)}\n\n{notes}\n"


def short_markdown(rows: Sequence[Row]) -> str:
    """The rows without sizes, speeds and notes, for a page about more than this suite."""
    heads = ["group", "variant", "bits per byte (runs)", "difference [95 %]", "verdict"]
    lines = [heads, ["---"] * len(heads)]
    lines += [[row["group"], row["variant"], *_compared_cells(row["shared"])] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def terminal_table(rows: Sequence[Row]) -> "Table":
    """The same rows for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    tuned = any(row["tuned"] for row in rows)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    parts = shows_parts(rows)
    for name in headings(tuned, parts):
        table.add_column(name, justify="right" if name in ("parameters", "tokens/s") else "left")
    for row in rows:
        verdict = row["shared"]["verdict"]
        style = {"better": "green", "worse": "red"}.get(verdict) or (
            "bold red" if verdict == FUTURE else None
        )
        table.add_row(*cells(row, tuned, parts), style=style)
    return table
