"""The heads of a model as the rows of one table, for the terminal."""

from typing import Any

import numpy as np

from zerotollm.explain.attention import NAMES

ROWS = 24
"""Heads that are shown at most: those that matter most when taken out, and those with a role."""
SHORT = {
    "previous token": "previous", "next token": "next", "same token": "same", "first token": "first",
    "same place": "place", "end of the sentence": "end", "punctuation": "marks",
}  # fmt: skip
"""Roles as heads of columns."""


def head_rows(heads: Any, ablation: Any) -> tuple[str, list[str], list[list[str]]]:
    """(the line above, columns, rows)."""
    named = {head: SHORT.get(role, role) for head, role in heads.named().items()}
    rise_LH, mean_rise_LH = ablation.rise_LH.value, ablation.mean_rise_LH and ablation.mean_rise_LH.value
    every = list(np.ndindex(rise_LH.shape))
    order = sorted(every, key=lambda head: (head not in named, -abs(rise_LH[head])))
    chosen = sorted(order[:ROWS])
    line = f"{NAMES[heads.where].capitalize()}, as layer.head: attention by role, loss without it:"
    if len(chosen) < len(every):
        line = f"{line[:-1]}; {len(chosen)} of {len(every)}, all are in the report:"
    role = ["role"] if named else []
    columns = [
        "head",
        *role,
        *(f">{SHORT.get(r, r)}" for r in heads.roles),
        ">entropy",
        ">loss without",
        ">with its mean",
    ]
    columns += [] if mean_rise_LH is None else [">with its mean"]
    rows = []
    for i, h in chosen:
        rows.append(
            [
                f"{i + 1}.{h + 1}",
                *([named.get((i, h), "")] if named else []),
                *(f"{x:.2f}" for x in heads.score_PLH.value[:, i, h]),
                f"{heads.entropy_LH[i, h]:.2f}",
                f"{rise_LH[i, h]:+.3f}",
                *([] if mean_rise_LH is None else [f"{mean_rise_LH[i, h]:+.3f}"]),
            ]
        )
    even = [
        *(f"{x:.2f}" for x in heads.even_P),
        f"{heads.even_entropy:.2f}",
        *[""] * (1 + (mean_rise_LH is not None)),
    ]
    return line, columns, [*rows, ["evenly", *([""] if named else []), *even]]
