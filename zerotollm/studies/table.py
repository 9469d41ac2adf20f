"""The results of a suite as rows, as Markdown and as a terminal table: a pure function of its records."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import NotRequired, TypedDict, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zerotollm.significance import Looks, compare_all, standard_deviation
from zerotollm.studies.records import FieldChange, RunRecord
from zerotollm.studies.suite import BASE

FUTURE = "too good to be true: sees the future"
BITS, WRONG = "bits per byte", "share of wrong labels"
"""Measures by which runs are compared."""
MARGINS = {BITS: 0.002, WRONG: 0.005, "BLEU": 0.5}
"""Smallest differences that matter, by measure."""
LARGEST = 700.0
"""Nats per token above which the perplexity would overflow a double."""
BLEU_HEADINGS = ["BLEU", "difference of BLEU [95 %]", "verdict by BLEU"]


class Difference(TypedDict):
    """A measure of a variant less that of the base, over the seeds of both; see `significance.Comparison`."""

    differences: list[float]
    """one a seed"""
    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    equivalence_p_value: float | None
    margin: float | None
    looks: NotRequired[Looks]
    """of a suite whose rows got seeds until something was shown"""
    verdict: str


class Result(Difference):
    """The runs of a variant at one rate: means over those trained to the end, and the difference to the base."""

    rate: NotRequired[float]
    runs: int
    trained: int
    """runs trained to the end"""
    measure: str
    value: float | None
    """mean of the measure"""
    bpb: float | None
    deviation: float | None
    """sample standard deviation of the measure"""
    loss: float | None
    perplexity: float | None
    bleu: float | None
    accuracy: float | None
    bleu_difference: NotRequired[Difference]


class Row(TypedDict):
    """A variant in `table.json`."""

    variant: str
    group: str
    change: list[FieldChange]
    paper: str
    sentence: str
    parameters: int
    flops_per_token: int
    tokens_per_second: float | None
    trained_parameters: int | None
    step_bytes: int | None
    seconds: float
    relative_time: NotRequired[float | None]
    """processor time of a run over that of the base, over the seeds of both; tables of earlier versions have none"""
    published: dict[str, float] | None
    shared: Result
    """at the rates of the experiments"""
    tuned: Result | None
    """at the best rates of the first seed, of the variant and of the base; None where nothing was tuned"""


def make_rows(
    records: Iterable[RunRecord], margins: Mapping[str, float] = MARGINS, looks: Looks | None = None
) -> list[Row]:
    """Return a row for each variant: the base first, then by group and name.

    The verdicts of each column of verdicts are corrected for all rows, and for `looks` (see
    `zerotollm.significance.compare_all`).
    """
    by_variant: dict[str, list[RunRecord]] = {}
    for record in records:
        by_variant.setdefault(record["variant"], []).append(record)
    base = by_variant.get(BASE, [])
    ordered = sorted(by_variant.items(), key=lambda item: (item[0] != BASE, item[1][0]["group"], item[0]))
    rows = [_row(runs, base) for _, runs in ordered]
    for results in ([row["shared"] for row in rows], [row["tuned"] for row in rows if row["tuned"]]):
        _add_verdicts(results, margins[measure(rows)], looks)
        bleu = [result["bleu_difference"] for result in results if "bleu_difference" in result]
        _add_verdicts(bleu, margins["BLEU"], looks, more_is_better=True)
    return rows


def best_rate(runs: Sequence[RunRecord]) -> float | None:
    """Return the factor of the rates that was best for the lowest seed; None if one alone was tried, or none worked."""
    if len({run["rate"] for run in runs}) < 2:
        return None
    seed = min(run["seed"] for run in runs)
    tried = [run for run in runs if run["seed"] == seed and run["validation_bpb"] is not None]
    return min(tried, key=lambda run: (_value(run), run["rate"]))["rate"] if tried else None


def _row(runs: list[RunRecord], base: list[RunRecord]) -> Row:
    first = min(runs, key=lambda run: (run["rate"] != 1, run["seed"]))
    rate, base_rate = best_rate(runs), best_rate(base)
    speeds = [run["tokens_per_second"] for run in runs if run["rate"] == 1 and run["tokens_per_second"]]
    tuned: Result | None = None
    if rate is not None and base_rate is not None:
        tuned = {"rate": rate, **_result(_at(runs, rate), _at(base, base_rate))}
    # Records of earlier versions lack the last three.
    names = ("variant", "group", "change", "paper", "sentence", "parameters", "flops_per_token")
    size = {name: first.get(name) for name in ("trained_parameters", "step_bytes")}
    row = {
        **{name: first.get(name) for name in names},
        "tokens_per_second": _mean(speeds),
        **size,
        "seconds": _mean(_known(runs, "seconds")) or 0.0,
        "relative_time": _relative_time(_at(runs, 1.0), _at(base, 1.0)),
        "published": first.get("published"),
        "shared": _result(_at(runs, 1.0), _at(base, 1.0)),
        "tuned": tuned,
    }
    return cast(Row, row)


def _at(runs: list[RunRecord], rate: float) -> list[RunRecord]:
    return sorted((run for run in runs if run["rate"] == rate), key=lambda run: run["seed"])


def _known(runs: Iterable[RunRecord], name: str) -> list[float]:
    return [value for run in runs if (value := run.get(name)) is not None]


def _relative_time(runs: list[RunRecord], base: list[RunRecord]) -> float | None:
    """Return the processor time of runs trained to the end, over that of the base with the same seeds."""
    times, base_times = (
        {r["seed"]: time for r in some if r["outcome"] == "trained" and (time := r.get("cpu_seconds"))}
        for some in (runs, base)
    )
    both = times.keys() & base_times.keys()
    return sum(map(times.__getitem__, both)) / sum(map(base_times.__getitem__, both)) if both else None


def _result(runs: list[RunRecord], base: list[RunRecord]) -> Result:
    trained, base_trained = ([r for r in some if r["outcome"] == "trained"] for some in (runs, base))
    values, base_values = ({run["seed"]: _value(run) for run in some} for some in (trained, base_trained))
    bleus, base_bleus = (
        {run["seed"]: bleu for run in some if (bleu := run.get("validation_bleu")) is not None}
        for some in (trained, base_trained)
    )
    losses, accuracies = _known(trained, "validation_loss"), _known(trained, "validation_accuracy")
    perplexities = [math.exp(loss) for loss in losses] if max(losses, default=0.0) < LARGEST else []
    result: Result = {
        "runs": len(runs),
        "trained": len(values),
        "measure": WRONG if accuracies else BITS,
        "value": _mean(values.values()),
        "bpb": _mean(_known(trained, "validation_bpb")),
        "deviation": standard_deviation(list(values.values())),
        "loss": _mean(losses),
        "perplexity": _mean(perplexities),
        "bleu": _mean(bleus.values()),
        "accuracy": _mean(accuracies),
        **_difference(values, base_values),
    }
    if runs and runs[0]["variant"] == BASE:
        return {**result, "differences": [], "verdict": "the base"}
    if bleus:
        result["bleu_difference"] = _difference(bleus, base_bleus)
    diverged = sum(run["outcome"] == "diverged" for run in runs)
    if any(run["outcome"] == "sees the future" for run in runs):
        result["verdict"] = FUTURE
    elif diverged:
        result["verdict"] = f"diverged ({diverged} of {len(runs)})"
    return result


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return fmean(values) if values else None


def _difference(values: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """Return the differences over the seeds of both; `_add_verdicts` completes the rest."""
    differences = [value - base[seed] for seed, value in values.items() if seed in base]
    undecided = dict.fromkeys(("difference", "low", "high", "p_value", "equivalence_p_value", "margin"))
    return cast(Difference, {"differences": differences, "pairs": 0, **undecided, "verdict": ""})


def _add_verdicts(
    results: Sequence[Difference], margin: float, looks: Looks | None, *, more_is_better: bool = False
) -> None:
    """Complete the differences, with verdicts corrected for all of them.

    A row that has a verdict already (diverged, sees the future) keeps it, and does not count for the correction.
    """
    paired = [result for result in results if result["differences"]]
    undecided = [result for result in paired if not result["verdict"]]
    reversed_verdicts = {"better": "worse", "worse": "better"} if more_is_better else {}
    comparisons = compare_all([result["differences"] for result in undecided], margin, looks)
    for result, comparison in zip(undecided, comparisons, strict=True):
        verdict = reversed_verdicts.get(comparison.verdict, comparison.verdict)
        design = {"looks": looks} if looks else {}
        result.update(cast(Difference, asdict(comparison) | {"margin": margin, "verdict": verdict} | design))
    for result in paired:
        if result["difference"] is None:
            [comparison] = compare_all([result["differences"]], margin, looks)
            result.update(cast(Difference, asdict(comparison) | {"verdict": result["verdict"]}))


def _value(run: RunRecord) -> float:
    """Return the measure of a run, where less is better: bits per byte, or the share of wrong labels."""
    accuracy = run.get("validation_accuracy")
    if accuracy is not None:
        return 1.0 - accuracy
    assert run["validation_bpb"] is not None
    return run["validation_bpb"]


# --- as text


def measure(rows: Sequence[Row]) -> str:
    """Return the measure by which the rows are compared."""
    return rows[0]["shared"]["measure"] if rows else BITS


def _has_bleu(rows: Sequence[Row]) -> bool:
    return any(row["shared"]["bleu"] is not None for row in rows)


def table(rows: Sequence[Row], short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of the rows; `short` leaves out sizes, speeds and the tuned rows."""
    results = _result_headings(rows)
    groups: list[tuple[Sequence[str], Callable[[Row], Sequence[str]]]] = [
        (("group", "variant"), lambda row: (row["group"], row["variant"])),
        (results, lambda row: _result_cells(row["shared"])),
    ]
    if _has_bleu(rows):
        groups.append((BLEU_HEADINGS, lambda row: _bleu_cells(row["shared"])))
    if any(row.get("relative_time") for row in rows):
        groups.append(
            (("time",), lambda row: [f"x {time:.2f}" if (time := row.get("relative_time")) else "-"])
        )
    if not short:
        groups.insert(1, (("change", "parameters", "FLOPs per token", "tokens/s"), _size_cells))
        if any(row["trained_parameters"] not in (None, row["parameters"]) for row in rows):
            groups.append((("trained", "memory of a step", "time of a run"), _cost_cells))
        if any(row["tuned"] for row in rows):
            tuned = ["best rates", *(f"tuned {name}" for name in results)]
            groups.append((tuned, lambda row: _tuned_cells(row["tuned"])))
    headings = [name for names, _ in groups for name in names]
    return headings, [[cell for _, cells in groups for cell in cells(row)] for row in rows]


def _size_cells(row: Row) -> list[str]:
    words, speed = ", ".join(_change_words(row["change"])), row["tokens_per_second"]
    flops = f"{row['flops_per_token'] / 1e6:.2f} M"
    return [words or "-", f"{row['parameters']:,}", flops, f"{speed:,.0f}" if speed else "-"]


def _change_words(changes: Sequence[FieldChange]) -> list[str]:
    """Return every field's change; of functions that replace built-in ones, their names and their file."""
    code = {c["field"]: c["to"] for c in changes if c["field"].startswith("code.")}
    words = [f"{c['field']} {c['from']} → {c['to']}" for c in changes if c["field"] not in code]
    own = f"{code.get('code.functions', 'functions')} of {code.get('code.module')}"
    return [*words, own] if code else words


def _cost_cells(row: Row) -> list[str]:
    trained, step_bytes = row["trained_parameters"], row["step_bytes"]
    return [
        f"{trained:,} ({trained / row['parameters']:.1%})" if trained else "-",
        f"{step_bytes / 1e6:,.0f} MB" if step_bytes else "-",
        f"{row['seconds']:,.0f} s",
    ]


def _result_headings(rows: Sequence[Row]) -> list[str]:
    return [f"{measure(rows)} (runs)", "difference [95 %]", "verdict"]


def _result_cells(result: Result) -> list[str]:
    value, deviation, difference = result["value"], result["deviation"], result["difference"]
    noise = f" ± {deviation:.4f}" if deviation is not None else ""
    return [
        f"{value:.4f}{noise} ({result['trained']})" if value is not None else "-",
        f"{difference:+.4f}{interval(result)}" if difference is not None else "-",
        result["verdict"],
    ]


def _tuned_cells(result: Result | None) -> list[str]:
    return [f"x {result.get('rate', 1.0):g}", *_result_cells(result)] if result else ["-"] * 4


def _bleu_cells(result: Result) -> list[str]:
    bleu, compared = result["bleu"], result.get("bleu_difference")
    if bleu is None:
        return ["-", "-", "-"]
    if not compared or compared["difference"] is None:
        return [f"{bleu:.2f}", "-", "-"]
    return [f"{bleu:.2f}", f"{compared['difference']:+.2f}{interval(compared, 2)}", compared["verdict"]]


def interval(result: Difference, digits: int = 4) -> str:
    """Return ` [low, high]`, or nothing where there is no interval."""
    if result["low"] is None:
        return ""
    return f" [{result['low']:+.{digits}f}, {result['high']:+.{digits}f}]"


def footer(rows: Sequence[Row]) -> str:
    """Return the text below the table: how to read it."""
    words = (
        f"Validation, {measure(rows)}: mean ± sample standard deviation over seeds; difference to the base over the "
        "same seeds. FLOPs are those of a training step."
    )
    if any(row.get("relative_time") for row in rows):
        words += " Time is a run's processor time, relative to the base's."
    if note := verdict_note(rows):
        words += (
            f" {note} The probability that any row is falsely called better or worse is at most 5 %, and so is the "
            "probability that any row without a difference that matters truly has one (two one-sided t tests)."
        )
    return words


def verdict_note(rows: Sequence[Row]) -> str:
    """Return what intervals and verdicts mean; nothing where no row was tested."""
    tested = [row["shared"] for row in rows if row["shared"]["margin"] and row["shared"]["pairs"] > 1]
    if not tested:
        return ""
    margins = f"{tested[0]['margin']:g} {'of all labels' if measure(rows) == WRONG else measure(rows)}"
    if _has_bleu(rows):
        margins += f", {MARGINS['BLEU']:g} BLEU"
    return (
        "A 95 % interval (Student) is of its row alone; verdicts are corrected for all rows (Holm). "
        f"A difference matters from {margins} on."
    ) + looks_note(tested[0].get("looks"))


def looks_note(looks: Looks | None) -> str:
    """Return how seeds were added, in words; nothing for a number of seeds that was fixed before."""
    if not looks:
        return ""
    return (
        f" Rows got seeds until their verdict was shown, at most {looks.last}. Verdicts are corrected for the looks "
        f"after {looks.first} to {looks.last} seeds, intervals are not."
    )


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table without a newline at its end; a bar in a cell is escaped."""
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (heads, ["---"] * len(heads), *lines)
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, with its footer and a description of each variant."""
    described = [row for row in rows if row["sentence"]]
    notes = "\n".join(f"- **{row['variant']}**: {row['sentence']} ({row['paper']})" for row in described)
    return f"{markdown_table(*table(rows))}\n\n{footer(rows)}\n\n{notes}\n"


def short_markdown(rows: Sequence[Row]) -> str:
    """Return the short table for a page on several subjects, that of the tuned rows, and a note on the verdicts."""
    blocks = [markdown_table(*table(rows, short=True))]
    tuned = [[row["variant"], *_tuned_cells(row["tuned"])] for row in rows if row["tuned"]]
    if tuned:
        blocks.append(markdown_table(["tuned", "best rates", *_result_headings(rows)], tuned))
    return "\n\n".join([*blocks, *filter(None, [verdict_note(rows)])])


def terminal_table(rows: Sequence[Row]) -> Table:
    """Return the same rows as a table for a terminal."""
    out = Table(box=SIMPLE_HEAD, pad_edge=False)
    headings, lines = table(rows)
    for name in headings:
        out.add_column(name, justify="right" if name in ("parameters", "tokens/s") else "left")
    styles = {"better": "green", "worse": "red", FUTURE: "bold red"}
    for row, cells in zip(rows, lines, strict=True):
        out.add_row(*cells, style=styles.get(row["shared"]["verdict"]))
    return out
