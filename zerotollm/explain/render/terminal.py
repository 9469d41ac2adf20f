"""Answers as tables for a terminal of 80 columns: (question, what is to be shown), a pure function of the answers.

What is shown are tables, the line above each, and the sentence that is the answer, below its own tables.
"""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from zerotollm.explain.estimates import Estimate
from zerotollm.explain.render.head_rows import head_rows

if TYPE_CHECKING:
    from rich.table import Table

    from zerotollm.explain.explanation import Explanation, RunExplanation

Shown = list[Any]
Question = tuple[str, Shown]
BAR = 20
LABEL = 9
"""Width of a first column at least: "embedding" fits."""
HEAD = 12
"""Width of the head of a column of numbers at most, where words allow it."""
TARGETS = 32
"""Tokens of a translation of which it is shown where they look."""
MAPS = 8
"""Heads of which it is said where they look, the most focused first."""
LONG = 160
"""Characters of a sample that are shown."""


def text_tables(found: "Explanation") -> list[Question]:
    """What one text shows, in the order of the notes: tokens, embedding, layers, prediction, attention."""
    said = found.sentences()

    def answers(*parts: tuple[str, Shown]) -> Shown:
        """The tables of each answer and below them its sentence; what is left out for one reason is said once."""
        items = []
        for name, tables in parts:
            items += tables
            if name in said and said[name] not in items:
                items.append(said[name])
        return items

    def if_there(answer: Any, table: Any) -> Shown:
        return [] if answer is None else table(answer)

    kinds = ("encoder", found.encoder_heads, found.encoder_ablation, found.encoder_attention)
    own = ("", found.heads, found.ablation, found.attention)
    cross = ("cross", found.cross_heads, found.cross_ablation, None)
    attention = []
    for where, heads, ablation, maps in (kinds, own, cross):
        before = where and f"{where}_"
        attention.append((f"{before}attention", if_there(maps, _looks)))
        if where == "cross":
            attention.append(("alignment", if_there(found.alignment, _alignment)))
        attention.append((f"{before}heads", _heads(heads, ablation) if heads and ablation else []))
        attention.append((f"{before}ablation", []))
    return [
        (
            "Why is the text split this way? Is it by frequency?",
            answers(("tokens", _tokens(found.tokens))),
        ),
        (
            "What is an embedding, how many dimensions are there, is it 2D or 3D?",
            answers(("embedding", _neighbours(found.embedding))),
        ),
        (
            "What is the difference between the encoding layer and the embedding layer; why two?",
            answers(
                ("encoder_layers", if_there(found.encoder_layers, _layers)),
                ("layers", if_there(found.layers, _layers)),
            ),
        ),
        (
            "How is the next token predicted; what is the math?",
            answers(
                ("prediction", if_there(found.prediction, _prediction)),
                ("calibration", if_there(found.calibration, _calibration)),
                ("positions", if_there(found.positions, _positions)),
            ),
        ),
        ("How does attention stay focused?", answers(*attention)),
    ]


def study_tables(found: "RunExplanation") -> list[Question]:
    """What the whole run shows: meaning, generation, learning, other tokenizers."""
    said = found.sentences()
    answers = (
        ("tokenizers", "The same text under other tokenizers", _tokenizers),
        (
            "meaning",
            "How is meaning determined? Are vectors closer when tokens are used in the same sentence?",
            _meaning,
        ),
        ("layers", "What can be read from the vectors, layer by layer?", _layers),
        ("generation", "Does it generate meaningful output or only grammatical output?", _generation),
        ("learning", "What did it learn, when?", _learning),
    )
    questions: list[Question] = []
    for name, title, tables in answers:
        answer = getattr(found, name)
        if name in said:  # else it is not asked of this model
            questions.append((title, [*(tables(answer) if answer else []), said[name]]))
    return questions


def _table(*columns: str) -> "Table":
    """A table whose columns are right-aligned where they begin with `>`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        number = name.startswith(">")
        head = "\n".join(wrap(name.removeprefix(">"), HEAD, break_long_words=False)) if number else name
        width = None if i or number else LABEL
        table.add_column(head, justify="right" if number else "left", no_wrap=number, min_width=width)
    return table


def _row(table: "Table", *cells: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell if isinstance(cell, str) else str(cell)) for cell in cells))


def _with_interval(estimate: Estimate, digits: int = 2) -> str:
    return (
        "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*estimate, digits) if np.isfinite(estimate.value) else "-"
    )


def _list(pieces: Sequence[str], most: int = 6) -> str:
    shown = " ".join(map(repr, pieces[:most]))
    return shown if len(pieces) <= most else f"{shown} … ({len(pieces)})"


def _tokens(tokens: Any) -> Shown:
    merged = any(piece.merges for piece in tokens.pieces)
    last = (
        ["merges: pair, rank, count then"] if merged else []
    )  # else no merges made this tokenizer, or none are known
    table = _table("token", ">id", ">in the training text", *last)
    for piece in tokens.pieces[:40]:
        steps = [
            f"{m.left}+{m.right} #{m.rank + 1}" + (f" ({m.count:,})" if m.count >= 0 else "")
            for m in piece.merges
        ]
        last = [(("… " if len(steps) > 2 else "") + ", ".join(steps[-2:])) or "-"] if merged else []
        _row(table, repr(piece.text), piece.id, f"{piece.count:,}" if piece.count >= 0 else "-", *last)
    strange = _table("such a text", ">in the training text", "becomes", ">bytes among them")
    for stranger in tokens.strangers:
        count = f"{stranger.count:,}" if stranger.count >= 0 else "-"
        _row(strange, stranger.text, count, _list(stranger.pieces), stranger.bytes_of_it)
    return [table, strange]


def _neighbours(embedding: Any) -> Shown:
    table = _table("token", "nearest embeddings, with cosine", ">chance")
    for n in embedding.neighbours[:12]:
        near = ", ".join(f"{p!r} {c:.2f}" for p, c in zip(n.pieces[:3], n.cosine_K[:3], strict=True))
        _row(table, repr(n.piece), near, f"{n.chance:.2f}")
    return [table]


def _layers(layers: Any) -> Shown:
    names = ("embedding", *(f"layer {m}" for m in range(1, len(layers.context_M))))
    table = _table(
        "after", ">same token elsewhere", ">any two tokens", ">own sentence", ">variance by context"
    )
    for m, name in enumerate(names):
        _row(
            table,
            name,
            f"{layers.self_similarity_M.value[m]:.3f}",
            f"{layers.any_similarity_M[m]:.3f}",
            f"{layers.sentence_similarity_M.value[m]:.3f}",
            f"{100 * layers.context_M[m]:.0f} %",
        )
    where = f" in the {layers.where}" if layers.where else ""
    shown = [f"Cosine{where} of a token's vector with that of:", table]
    if layers.probes:
        probes = _table("after", *(f">{probe.task.partition(' (')[0]}" for probe in layers.probes))
        for m, name in enumerate(names):
            each = (f"{p.accuracy_M.value[m]:.2f}, {p.control_M[m]:.2f}" for p in layers.probes)
            _row(probes, name, *each)
        shown += [f"Share right{where} of a linear probe, and of one for labels drawn by lot:", probes]
    return shown


def _prediction(found: Any) -> Shown:
    sampler = f">sampler's, at temperature {found.temperature:g}"
    best = _table("next token", ">logit", ">p", sampler, "largest products, state x head (#feature)")

    def numbers(i: int) -> tuple[str, str, str]:
        return f"{found.logits_V[i]:.2f}", f"{found.probabilities_V[i]:.3f}", f"{found.sampled_V[i]:.3f}"

    for k, piece in enumerate(found.best_pieces):
        products = found.products_KD[k]
        top = np.argsort(-np.abs(products))[:3]
        sums = " ".join(f"{products[d]:+.2f} (#{d})" for d in top)
        drawn = "  <- drawn" if found.best_K[k] == found.drawn else ""
        _row(best, repr(piece) + drawn, *numbers(found.best_K[k]), f"{sums} …")
    if found.drawn is not None and found.drawn not in found.best_K:
        _row(best, f"{found.drawn_piece!r}  <- drawn", *numbers(found.drawn), "")
    lens = _table(
        "read out after", "likeliest next token", f">p of {found.best_pieces[0]!r}", ">nats per token"
    )
    for m, piece in enumerate(found.lens_best_pieces):
        nats = f"{found.lens_nats_MT[m].mean():.2f}" if found.lens_nats_MT.shape[1] else "-"
        place = f"layer {m}" if m else "embedding"
        _row(lens, place, repr(piece), f"{found.lens_probability_M[m]:.3f}", nats)
    return [best, lens]


def _calibration(found: Any) -> Shown:
    table = _table("as sure as", ">times", ">sure", ">right", "")
    for x in np.flatnonzero(found.count_X):
        share = found.accuracy_X.value[x]
        _row(
            table,
            f"{100 * found.edges[x]:.0f} to {100 * found.edges[x + 1]:.0f} %",
            f"{found.count_X[x]:,}",
            f"{100 * found.confidence_X[x]:.1f} %",
            f"{100 * share:.1f} %",
            "█" * round(BAR * share),
        )
    return [table]


def _positions(found: Any) -> Shown:
    table = _table(f"place in the {found.of}", ">nats per token")
    for first, last, *e in zip(found.first_Y, found.last_Y, *found.nats_Y, strict=True):
        place = f"{first + 1} to {last + 1}" if last > first else str(first + 1)
        _row(table, place, _with_interval(Estimate(*e)))
    return [table]


def _heads(heads: Any, ablation: Any) -> Shown:
    line, columns, rows = head_rows(heads, ablation)
    table = _table(*columns)
    for row in rows:
        _row(table, *row)
    return [line, table]


def _looks(maps: Any) -> Shown:
    where = f" in the {maps.where}" if maps.where else ""
    table = _table("head", f"where the last token of the text looks{where}")
    entropy_LH = maps.entropy_LHT[..., -1]
    for i, h in sorted(np.ndindex(entropy_LH.shape), key=lambda head: entropy_LH[head])[:MAPS]:
        last_S = maps.weights_LHTS[i, h, -1]
        most = ", ".join(f"{maps.pieces[s]!r} {last_S[s]:.2f}" for s in np.argsort(-last_S)[:4])
        _row(table, f"{i + 1}.{h + 1}", most)
    return [f"The most focused heads{where}, as layer.head:", table]


def _alignment(found: Any) -> Shown:
    table = _table("writes", "while it looks at, mean of all heads")
    for piece, looks_S in zip(found.target[:TARGETS], found.weights_LHTS.mean((0, 1)), strict=False):
        most = ", ".join(f"{found.source[s]!r} {looks_S[s]:.2f}" for s in np.argsort(-looks_S)[:4])
        _row(table, repr(piece), most)
    left = len(found.target) - TARGETS
    return [table, *([f"… and {left} more tokens: see the report."] if left > 0 else [])]


def _tokenizers(found: Any) -> Shown:
    table = _table("tokenizer", ">vocabulary", ">bytes per token", "the text")
    for name, size, rate, cut in zip(
        found.names, found.vocab_size_Y, found.bytes_per_token_Y, found.cuts, strict=True
    ):
        _row(table, name, f"{size:,}", f"{rate:.2f}", "|".join(cut[:60]))
    return [table]


def _meaning(found: Any) -> Shown:
    shown = []
    for line, estimates, alone_Y, p_Y, other in (
        ("shared contexts", found.contexts, found.contexts_alone_Y, found.p_contexts_Y, "sentence"),
        ("the same sentence", found.together, found.together_alone_Y, found.p_together_Y, "contexts"),
    ):
        table = _table(">step", ">Spearman", ">p", f">{other} held fixed")
        for step, estimate, alone, p in zip(found.steps_Y, estimates, alone_Y, p_Y, strict=True):
            _row(table, step, _with_interval(estimate), f"{p:.3f}", f"{alone:.2f}")
        shown += [f"Cosine of two embeddings with {line}:", table]
    return shown


def _generation(found: Any) -> Shown:
    measures = _table("measure", ">its own texts", ">real ones", ">own - real")
    for name, field, digits in (
        ("longest copied span, tokens", "longest_copy", 1),
        ("4-grams that came before", "repetition", 3),
        ("bits per byte", "bits_per_byte", 2),
        ("its source helps, nats" if found.sources else "halves belong together, nats", "coherence", 3),
    ):
        own, real = getattr(found.own, field), getattr(found.real, field)
        less = getattr(found.difference, field)
        _row(measures, name, *(_with_interval(estimate, digits) for estimate in (own, real, less)))
    for n in range(3):
        values = found.own.distinct[n], found.real.distinct[n]
        _row(measures, f"distinct {n + 1}-grams", *(f"{value:.2f}" for value in values), "")
    shown = [measures]
    for number, (text, copied, near) in enumerate(
        zip(found.samples[:3], found.own.copied, found.nearest, strict=False)
    ):
        said = [f"{'wrote' if found.sources else f'text {number + 1}'}: {_short(text)}"]
        if found.sources:
            said.insert(0, f"of: {_short(found.sources[number])}")
        said.append(f"{copied.length} tokens of it stand in the training text: … {' '.join(near.split())} …")
        shown.append("\n".join(said))
    return shown


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONG else f"{text[:LONG]} …"


def _learning(found: Any) -> Shown:
    shown: Shown = []
    for names, groups_YG in (
        (found.band_names, found.band_YG.value),
        (found.part_names, found.part_YG.value),
    ):
        there = ~np.isnan(groups_YG).all(0)
        table = _table(">step", *(f">{name}" for name, any_ in zip(names, there, strict=True) if any_))
        for step, row in zip(found.steps_Y, groups_YG[:, there], strict=True):
            _row(table, step, *("-" if np.isnan(x) else f"{x:.2f}" for x in row))
        shown += ["Loss, nats per token, of:", table]
    gain = found.induction_Y
    table = _table(">step", ">loss of all", *([] if gain is None else [">gain of repetition"]))
    for y, step in enumerate(found.steps_Y):
        last = [] if gain is None else [f"{gain.value[y]:+.2f}"]
        _row(table, step, f"{found.loss_Y.value[y]:.2f}", *last)
    return [*shown, table]
