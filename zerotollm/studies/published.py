"""A suite compared with the numbers that its paper published: a table, and which conclusions hold here too."""

from collections.abc import Sequence

from zerotollm.studies.suite import BASE
from zerotollm.studies.table import Row, markdown_table, verdict_note

CLEAR = 0.01
"""Relative difference of the paper's perplexities from which on it is a conclusion."""


def published_markdown(rows: Sequence[Row]) -> str:
    """Return perplexity per token, BLEU and parameters of every variant: our mean over runs, and the paper's number.

    Both are of their own validation set and vocabulary. Empty where no row has a published number.
    """
    rows = [row for row in rows if row["published"]]
    if not rows:
        return ""
    heads = ["", "change", "PPL (runs)", "paper", "BLEU", "paper", "parameters x 10^6", "paper"]
    return f"{markdown_table(heads, map(_cells, rows))}\n\n{conclusion(rows)}\n"


def _cells(row: Row) -> list[str]:
    published, shared = row["published"] or {}, row["shared"]
    change = (f"{c['field'].partition('.')[2]}={_short(c['to'])}" for c in row["change"])
    perplexity, millions = shared["perplexity"], row["parameters"] / 1e6
    return [
        row["group"] if row["variant"] != BASE else BASE,
        ", ".join(change) or "-",
        f"{perplexity:.2f} ({shared['trained']})" if perplexity is not None else "",
        _number(published.get("perplexity"), 2),
        _number(shared["bleu"], 1),
        _number(published.get("bleu"), 1),
        _number(millions, 1 if millions >= 1 else 2),
        _number(published.get("parameters"), 0),
    ]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def conclusion(rows: Sequence[Row]) -> str:
    """Return which of the paper's differences in perplexity to its base have the same direction here, and which of
    them our seeds show; then what that means. Ours are differences in bits per byte, the logarithm of perplexity."""
    by_name = {row["variant"]: row for row in rows}
    base = by_name.get(BASE)
    if base is None or base["shared"]["loss"] is None:
        return "The base was not trained, so nothing can be concluded."
    base_perplexity = (base["published"] or {})["perplexity"]
    shown, same, other, contrary = [], [], [], []
    for name, row in by_name.items():
        perplexity = (row["published"] or {}).get("perplexity", base_perplexity)
        # Over the seeds of both: the base's mean over more seeds is not comparable with a row of one.
        difference = row["shared"]["difference"]
        if difference is None or abs(perplexity / base_perplexity - 1) <= CLEAR:
            continue
        clear = row["shared"]["verdict"] in ("better", "worse")
        if (perplexity > base_perplexity) == (difference > 0):
            (shown if clear else same).append(name)
        else:
            other.append(name)
            contrary += [name] if clear else []
    total = len(shown) + len(same) + len(other)
    if not total:
        differs = "whose perplexity in the paper differs from its base's by more than 1 %"
        return f"No variant was trained {differs}."
    sentences = [
        f"In the paper the perplexity of {total} variants differs from the base's by more than 1 %.",
        f"Here {len(shown)} of them are shown to differ in the same direction{_names(shown)}.",
        f"{len(same)} differ in this direction without being shown to{_names(same)}.",
        f"{len(other)} do not{_names(other)}.",
    ]
    if contrary:
        sentences.append(f"{len(contrary)} of these are shown to differ in the other one{_names(contrary)}.")
    return f"{' '.join(sentences)} {verdict_note(rows)}".rstrip()


def _names(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
