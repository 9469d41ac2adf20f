"""The results of a suite as rows, as Markdown and as a table on the terminal: a pure function of its runs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zerotollm.significance import compare_all, mean, standard_deviation
from zerotollm.studies.records import Record
from zerotollm.studies.suite import BASE

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
FUTURE = "too good to be true: sees the future"
BITS, WRONG = "bits per byte", "share of wrong labels"
"""What runs are compared by."""
MARGINS = {BITS: 0.002, WRONG: 0.005, "BLEU": 0.5}
"""Differences that are too small to matter: bits per byte, half a label of a hundred, half a point of BLEU."""
LARGEST = 700.0
"""Nats a token of which the exponential is still a number of double precision."""


def make_rows(records: Iterable[Record], margins: Mapping[str, float] = MARGINS) -> list[Row]:
    """One row a variant, the base first, then by group and name; what `table.json` holds.

    `shared` compares runs at the rates as they stand; `tuned`, None where nothing was tuned, those at the rates
    that were best for the first seed, of the variant and of the base alike. Verdicts of each, and of BLEU, are
    corrected for all rows, with the `margins` of what is compared (`zerotollm.significance.compare_all`).
    """
    by_variant: dict[str, list[Record]] = {}
    for record in records:
        by_variant.setdefault(record["variant"], []).append(record)
    base = by_variant.get(BASE, [])
    ordered = sorted(by_variant.items(), key=lambda item: (item[0] != BASE, item[1][0]["group"], item[0]))
    rows = [_row(runs, base) for _, runs in ordered]
    for compared in ([row["shared"] for row in rows], [row["tuned"] for row in rows if row["tuned"]]):
        _judge(compared, margins[measure(rows)])
        bleu = [c["bleu_difference"] for c in compared if "bleu_difference" in c]
        _judge(bleu, margins["BLEU"], more_is_better=True)
    return rows


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
        **_difference(of_seed, base_of_seed),
    }
    if runs and runs[0]["variant"] == BASE:
        return result | {"differences": [], "verdict": "the base"}
    if bleus:
        ours, others = (
            {run["seed"]: run["validation_bleu"] for run in some if run.get("validation_bleu") is not None}
            for some in (trained, base_trained)
        )
        result["bleu_difference"] = _difference(ours, others)
    diverged = sum(run["outcome"] == "diverged" for run in runs)
    if any(run["outcome"] == "sees the future" for run in runs):
        result["verdict"] = FUTURE
    elif diverged:
        result["verdict"] = f"diverged ({diverged} of {len(runs)})"
    return result


def _difference(ours: dict[int, float], others: dict[int, float]) -> Row:
    """Ours less the others', over the seeds that both have, before `_judge`."""
    undecided = dict.fromkeys(("difference", "low", "high", "p_value", "equivalence_p_value", "margin"))
    differences = [value - others[seed] for seed, value in ours.items() if seed in others]
    return {"differences": differences, "pairs": 0, **undecided, "verdict": ""}


def _judge(compared: Sequence[Row], margin: float, *, more_is_better: bool = False) -> None:
    """Completes rows of `_difference`, with verdicts corrected for all of them; a verdict that is there stays, and
    its row does not count."""
    paired = [row for row in compared if row["differences"]]
    open_rows = [row for row in paired if not row["verdict"]]
    turned = {"better": "worse", "worse": "better"} if more_is_better else {}
    for row, found in zip(
        open_rows, compare_all([row["differences"] for row in open_rows], margin), strict=True
    ):
        row.update(asdict(found), margin=margin, verdict=turned.get(found.verdict, found.verdict))
    for row in paired:
        if row["difference"] is None:
            row.update(asdict(compare_all([row["differences"]], margin)[0]), verdict=row["verdict"])


def _value(run: Record) -> float:
    """What runs are compared by, less being better: of a model that gives labels, the share of wrong ones."""
    accuracy = run.get("validation_accuracy")
    return run["validation_bpb"] if accuracy is None else 1.0 - accuracy


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
    bleu, compared = comparison["bleu"], comparison.get("bleu_difference")
    if bleu is None:
        return ["-", "-", "-"]
    if not compared or compared["difference"] is None:
        return [f"{bleu:.2f}", "-", "-"]
    low = "" if compared["low"] is None else f" [{compared['low']:+.2f}, {compared['high']:+.2f}]"
    return [f"{bleu:.2f}", f"{compared['difference']:+.2f}{low}", compared["verdict"]]


def headings(rows: Sequence[Row]) -> list[str]:
    """What stands over the columns of `cells`."""
    names = ["group", "variant", "change", "parameters", "FLOPs per token", "tokens/s"]
    compared = _compared_headings(rows)
    names += compared + (BLEU_HEADINGS if _translated(rows) else [])
    names += ["trained", "memory of a step", "time of a run"] if shows_parts(rows) else []
    return names + (["best rates", *(f"tuned {name}" for name in compared)] if _tuned(rows) else [])


BLEU_HEADINGS = ["BLEU", "difference of BLEU [95 %]", "verdict by BLEU"]


def _compared_headings(rows: Sequence[Row]) -> list[str]:
    return [f"{measure(rows)} (runs)", "difference [95 %]", "verdict"]


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
    words = (
        f"Validation, {measure(rows)}: mean ± sample standard deviation over seeds; difference to the base over the "
        "same seeds. FLOPs are those of a training step."
    )
    if note := verdict_note(rows):
        words += (
            f" {note} The probability that any row is falsely called better or worse is at most 5 %, and so is the "
            "probability that any row without a difference that matters truly has one (two one-sided t tests)."
        )
    return words


def verdict_note(rows: Sequence[Row]) -> str:
    """What intervals and verdicts are, in short; empty where nothing was tested."""
    tested = [row["shared"] for row in rows if row["shared"]["margin"] and row["shared"]["pairs"] > 1]
    if not tested:
        return ""
    margins = f"{tested[0]['margin']:g} {'of all labels' if measure(rows) == WRONG else measure(rows)}"
    if _translated(rows):
        margins += f", {MARGINS['BLEU']:g} BLEU"
    return (
        "A 95 % interval (Student) is of its row alone; verdicts are corrected for all rows (Holm). "
        f"A difference matters from {margins} on."
    )


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
    those that were tuned, and what verdicts mean."""
    heads = ["group", "variant", *_compared_headings(rows)]
    heads += BLEU_HEADINGS if _translated(rows) else []
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
        heads = ["tuned", "best rates", *_compared_headings(rows)]
        tuned = [heads, ["---"] * len(heads), *tuned]
    tables = ["\n".join("| " + " | ".join(line) + " |" for line in part) for part in (lines, tuned) if part]
    return "\n\n".join(tables + ([note] if (note := verdict_note(rows)) else []))


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
