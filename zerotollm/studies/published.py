"""A suite beside the numbers that its paper published: one table, and what of the paper's conclusions holds here."""

from collections.abc import Sequence
from typing import Any

from zerotollm.studies.suite import BASE
from zerotollm.studies.table import Row, verdict_note

CLEAR = 0.01
"""The paper's perplexity must differ by more than this share from its base's to be a conclusion."""


def published_markdown(rows: Sequence[Row]) -> str:
    """Perplexity per token, BLEU and parameters of every variant, ours (the mean of so many runs) and the paper's;
    empty where no row has any of the paper's. Both perplexities and BLEUs are of each one's own validation set and
    vocabulary."""
    rows = [row for row in rows if row.get("published")]
    if not rows:
        return ""
    heads = ["", "change", "PPL (runs)", "paper", "BLEU", "paper", "parameters x 10^6", "paper"]
    lines = [heads, ["---"] * len(heads), *map(_cells, rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\n{conclusion(rows)}\n"


def _cells(row: Row) -> list[str]:
    published, shared = row["published"], row["shared"]
    change = ", ".join(f"{c['field'].partition('.')[2]}={_short(c['to'])}" for c in row["change"])
    return [
        row["group"] if row["variant"] != BASE else BASE,
        change or "-",
        f"{shared['perplexity']:.2f} ({shared['trained']})" if shared.get("perplexity") is not None else "",
        _number(published.get("perplexity"), 2),
        _number(shared.get("bleu"), 1),
        _number(published.get("bleu"), 1),
        f"{row['parameters'] / 1e6:.1f}" if row["parameters"] >= 1e6 else f"{row['parameters'] / 1e6:.2f}",
        _number(published.get("parameters"), 0),
    ]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def conclusion(rows: Sequence[Row]) -> str:
    """Two sentences: which of the paper's differences to its base in perplexity have the same direction here, and for
    which of them our seeds show it; and what that means. Ours are differences in bits per byte, of which perplexity is
    an exponential."""
    by_name = {row["variant"]: row for row in rows}
    base = by_name.get(BASE)
    if base is None or base["shared"]["loss"] is None:
        return "The base was not trained, so nothing can be concluded."
    shown, same, other, contrary = [], [], [], []
    for name, row in by_name.items():
        paper, paper_base = row["published"].get("perplexity"), base["published"]["perplexity"]
        # Over the seeds that both have: the base's mean over more of them says nothing of a row with one.
        difference = row["shared"]["difference"]
        if name == BASE or paper is None or difference is None or abs(paper / paper_base - 1) <= CLEAR:
            continue
        agrees = (paper > paper_base) == (difference > 0)
        clear = row["shared"]["verdict"] in ("better", "worse")
        if agrees:
            (shown if clear else same).append(name)
        else:
            other.append(name)
            contrary += [name] if clear else []
    total = len(shown) + len(same) + len(other)
    if not total:
        return (
            "No variant was trained of which the paper's perplexity differs from its base's by more than 1 %."
        )
    parts = [f"Of {total} variants whose perplexity differs from the base's by more than 1 % in the paper"]
    parts.append(f"{len(shown)} are shown to differ in the same direction here{_names(shown)}")
    parts.append(f"{len(same)} do so without being shown to{_names(same)}")
    parts.append(f"{len(other)} do not{_names(other)}")
    if contrary:
        parts.append(f"{len(contrary)} of these are shown to differ in the other direction{_names(contrary)}")
    return f"{', '.join(parts)}. {verdict_note(rows)}".rstrip()


def _names(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
