"""Pictures of what happens before the first layer: tokens, embeddings, meaning."""

from typing import TYPE_CHECKING

import numpy as np

from zerotollm.explain.figures.marks import Axis, Bars, Cloud, Dots, Line, Panel, said
from zerotollm.explain.figures.picture import Picture

if TYPE_CHECKING:
    from zerotollm.explain.embeddings import Embeddings
    from zerotollm.explain.meaning import Meaning
    from zerotollm.explain.tokenization import Tokenization, TokenizerComparison

POINTS = 400
"""Of a curve over ranks, evenly spread on its logarithmic axis: more cannot be told apart."""
LABELLED = 32
"""Tokens of the flat map that are named, at most, ..."""
TRIED = 150
"""... of the most frequent ones."""


def visible(piece: str) -> str:
    """A token as a label: a space is a raised dot."""
    return piece.replace(" ", "\N{MIDDLE DOT}") or "(nothing)"


def spread(N: int, most: int = POINTS) -> np.ndarray:
    """Indices of N things, dense at the start: even steps of the logarithm."""
    return np.unique(np.geomspace(1, N, min(N, most)).astype(int)) - 1 if N else np.zeros(0, int)


def tokenization(found: "Tokenization") -> Picture:
    """Zipf's law, the counts of merges in their order, compression against vocabulary size."""
    panels = []
    if found.counts_V is not None:
        counts_R = np.sort(found.counts_V[found.counts_V > 0])[::-1]
        at = spread(len(counts_R))
        marks = [
            Line(
                at + 1,
                counts_R[at],
                "tokens of the training text",
                hover=said("rank {:,}: {:,} times", at + 1, counts_R[at]),
            )
        ]
        if np.isfinite(found.zipf.value) and len(counts_R) > 10:
            middle = min(len(counts_R), 100) - 1
            law = counts_R[middle] * ((at + 1) / (middle + 1)) ** found.zipf.value
            marks.append(Line(at + 1, law, f"slope {found.zipf.value:.2f}", color=6, dashed=True))
        axes = Axis("rank of the token", log=True), Axis("times in the training text", log=True)
        own = [p for p in {p.id: p for p in found.pieces}.values() if p.count > 0]
        rank = {p.id: 1 + int((counts_R > p.count).sum()) for p in own}
        marks.append(
            Dots(
                [rank[p.id] for p in own],
                [p.count for p in own],
                "tokens of your text",
                color=1,
                hover=tuple(f"{visible(p.text)}: rank {rank[p.id]:,}, {p.count:,} times" for p in own),
            )
        )
        panels.append(Panel("Zipf: how often each token occurs", tuple(marks), *axes))
    if len(found.count_R):
        at = spread(len(found.count_R))
        hover = tuple(f"merge {r + 1:,}: its pair stood there {found.count_R[r]:,} times" for r in at)
        marks = (Line(at + 1, np.maximum(found.count_R[at], 0.5), "all merges", hover=hover),)
        steps = [m for m in {m.rank: m for p in found.pieces for m in p.merges}.values() if m.count > 0]
        marks += (
            Dots(
                [m.rank + 1 for m in steps],
                [m.count for m in steps],
                "merges that built your text",
                color=1,
                hover=tuple(f"merge {m.rank + 1:,}: {m.left}+{m.right}, {m.count:,} times" for m in steps),
            ),
        )
        axes = Axis("merge", log=True), Axis("count of its pair just before", log=True)
        panels.append(Panel("Merges in the order they were made", marks, *axes))
        at = np.unique(np.linspace(0, len(found.count_R) - 1, 200).astype(int))
        size, rate = found.vocabulary_R[at], found.compression_R[at]
        hover = tuple(f"vocabulary {s:,}: {b:.2f} bytes per token" for s, b in zip(size, rate, strict=True))
        axes = Axis("size of the vocabulary"), Axis("bytes per token")
        panels.append(Panel("Compression against vocabulary", (Line(size, rate, hover=hover),), *axes))
    return Picture("Why the text is split this way", tuple(panels), found.sentence())


def tokenizers(found: "TokenizerComparison") -> Picture:
    """Bytes per token of each tokenizer."""
    rate = found.bytes_per_token_Y
    places = range(len(found.names))
    hover = said("{}: {:.2f} bytes per token, vocabulary {:,}", found.names, rate, found.vocab_size_Y)
    bars = Bars(rate, places, across=True, hover=hover, text=tuple(f"{r:.2f}" for r in rate))
    axes = Axis("bytes per token of held-out text"), Axis(names=found.names, down=True)
    return Picture(
        "Other tokenizers", (Panel("Bytes per token", (bars,), *axes, height=220),), found.sentence()
    )


def embeddings(found: "Embeddings") -> Picture:
    """The map in three dimensions and in two, what they leave out, and the neighbours of the text's tokens."""
    from zerotollm.explain.words import KINDS

    kinds = [(k, name) for k, name in enumerate(KINDS) if (found.map_kinds_N == k).any()]
    cloud, flat = [], []
    for k, name in kinds:
        of = np.flatnonzero(found.map_kinds_N == k)
        pieces = tuple(visible(found.map_pieces[i]) for i in of)
        cloud.append(Cloud(found.map_N3[of], name, k, pieces))
        flat.append(Dots(found.map_N3[of, 0], found.map_N3[of, 1], name, k, hover=pieces, size=6))
    named = _apart(found.map_N3[:, :2])
    names = tuple(visible(found.map_pieces[i]) for i in named)
    flat.append(
        Dots(found.map_N3[named, 0], found.map_N3[named, 1], "", 6, size=0.1, text=names, hover=names)
    )
    spectrum_D = found.geometry.spectrum_D
    share = 100 * np.cumsum(spectrum_D) / max(spectrum_D.sum(), 1e-300)
    chance = (
        100
        * np.cumsum(found.geometry.chance_spectrum_D)
        / max(found.geometry.chance_spectrum_D.sum(), 1e-300)
    )
    place = np.arange(1, len(share) + 1)
    at = spread(len(place))
    curves = tuple(
        Line(
            place[at],
            values[at],
            name,
            color,
            dashed=color == 6,
            hover=said("{}: the first {} of {} hold {:.1f} %", name, place[at], len(place), values[at]),
        )
        for name, values, color in (("this model", share, 0), ("as many random vectors", chance, 6))
    )
    panels = [
        Panel(f"The {len(found.map_ids_N)} most frequent tokens in 3D: turn it", tuple(cloud), height=430),
        Panel("The same in 2D", tuple(flat), Axis("component 1"), Axis("component 2"), height=430),
        Panel(
            "What a picture leaves out",
            curves,
            Axis("principal components", log=True),
            Axis("% of the variance", span=(0, 101)),
            height=320,
        ),
    ]
    for n in found.neighbours[:40]:
        names = tuple(visible(p) for p in n.pieces)
        hover = tuple(
            f"{visible(n.piece)} and {p}: cosine {c:.3f}" for p, c in zip(names, n.cosine_K, strict=True)
        )
        limit = ("with shuffled principal components no token asked for is closer, with 95 %",) * 2
        marks = (
            Bars(n.cosine_K, range(len(names)), across=True, hover=hover),
            Line([n.chance, n.chance], [-0.5, len(names) - 0.5], color=6, dashed=True, hover=limit),
        )
        axes = Axis("cosine; dotted: as close as by chance", span=(0, 1)), Axis(names=names, down=True)
        panels.append(Panel("Nearest neighbours", marks, *axes, height=320, choice=visible(n.piece)))
    return Picture("The embedding", tuple(panels), found.sentence())


def _apart(xy_N2: np.ndarray) -> list[int]:
    """The first points whose labels have room beside those of earlier ones."""
    unit_N2 = (xy_N2 - xy_N2.min(0)) / np.maximum(np.ptp(xy_N2, axis=0), 1e-12)
    kept: list[int] = []
    for i, (x, y) in enumerate(unit_N2[:TRIED]):
        if len(kept) < LABELLED and all(
            abs(x - unit_N2[j, 0]) > 0.11 or abs(y - unit_N2[j, 1]) > 0.04 for j in kept
        ):
            kept.append(i)
    return kept


def meaning(found: "Meaning") -> Picture:
    """What the cosine of two embeddings goes with, over the checkpoints and at the end."""

    def over_steps(name, estimates, p_Y, color):
        value, low, high = (np.array(x, float) for x in zip(*estimates, strict=True))
        hover = tuple(
            f"step {s:,}, {name}: {e} (p = {p:.3f})"
            for s, e, p in zip(found.steps_Y, estimates, p_Y, strict=True)
        )
        return Line(found.steps_Y, value, name, color, low, high, hover, dots=True)

    marks = (
        over_steps("shared contexts", found.contexts, found.p_contexts_Y, 0),
        over_steps("the same sentence", found.together, found.p_together_Y, 1),
    )
    axes = Axis("step"), Axis("Spearman's correlation")
    panels = [Panel("The cosine of two words goes with ...", marks, *axes)]
    upper = np.triu_indices(len(found.pieces), 1)
    cosine = found.cosine_NN[upper]
    binned = []
    for name, matrix, color in (
        ("shared contexts", found.usage.contexts_NN, 0),
        ("the same sentence", found.usage.together_NN, 1),
    ):
        order = np.argsort(matrix[upper], kind="stable")
        parts = np.array_split(cosine[order], 20)
        tenth = (np.arange(20) + 0.5) * 5
        mean = [part.mean() for part in parts]
        hover = tuple(
            f"{name}, {t - 2.5:.0f} to {t + 2.5:.0f} %: cosine {m:.3f}"
            for t, m in zip(tenth, mean, strict=True)
        )
        binned.append(Line(tenth, mean, name, color, hover=hover, dots=True))
    axes = Axis("pairs of words, from the least to the most, %"), Axis("mean cosine of their embeddings")
    panels.append(Panel("Pairs by how much they share, last checkpoint", tuple(binned), *axes))
    return Picture("How meaning is determined", tuple(panels), found.sentence())
