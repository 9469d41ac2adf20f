"""Answers as tables for a terminal: (question, tables, sentence), a pure function of the answers."""

from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

    from zerotollm.explain.explanation import Explanation, Study

Question = tuple[str, list[Any], str]
BAR = 20
LABEL = 9
"""Width of a first column at least: "embedding" fits."""


def text_tables(found: "Explanation") -> list[Question]:
    """What one text shows, in the order of the notes: tokens, embedding, layers, prediction, attention."""
    said = found.sentences()
    questions: list[Question] = [
        ("Why is the text split this way? Is it by frequency?", _tokens(found.tokens), said["tokens"]),
        (
            "What is an embedding, how many dimensions are there, is it 2D or 3D?",
            _neighbours(found.embedding),
            said["embedding"],
        ),
    ]
    title = "What is the difference between the encoding layer and the embedding layer; why two?"
    both = [tables for layers in (found.encoder_layers, found.layers) if layers for tables in _layers(layers)]
    questions.append((title, both, _joined(said, ("encoder_layers", "layers"))))
    tables = _prediction(found.prediction) if found.prediction else []
    if found.calibration:
        tables += [_calibration(found.calibration), _positions(found.positions)]
    parts = ("prediction", "calibration", "positions")
    questions.append(
        ("How is the next token predicted; what is the math?", tables, _joined(said, parts)),
    )
    tables = []
    for heads, ablation, maps in (
        (found.encoder_heads, found.encoder_ablation, found.encoder_attention),
        (found.heads, found.ablation, found.attention),
        (found.cross_heads, found.cross_ablation, None),
    ):
        tables += [_heads(heads, ablation)] if heads and ablation else []
        tables += [_looks(maps)] if maps else []
    if found.alignment:
        tables.append(_alignment(found.alignment))
    parts = ("attention", "alignment", "heads", "ablation")
    parts = (
        "encoder_attention",
        "encoder_heads",
        "encoder_ablation",
        *parts,
        "cross_heads",
        "cross_ablation",
    )
    questions.append(("How does attention stay focused?", tables, _joined(said, parts)))
    return questions


def study_tables(found: "Study") -> list[Question]:
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
        if answer is None and name not in said:
            continue  # not asked of this model
        questions.append((title, tables(answer) if answer else [], said.get(name, "")))
    return questions


def _joined(said: dict[str, str], names: tuple[str, ...]) -> str:
    return "\n".join(dict.fromkeys(said[name] for name in names if name in said))


def _table(*columns: str, title: str | None = None) -> "Table":
    """A table whose columns are right-aligned where they begin with `>`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for i, name in enumerate(columns):
        number = name.startswith(">")
        head = "\n".join(wrap(name.removeprefix(">"), 14, break_long_words=False)) if number else name
        width = None if i or number else LABEL
        table.add_column(head, justify="right" if number else "left", no_wrap=number, min_width=width)
    return table


def _row(table: "Table", *cells: Any) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell if isinstance(cell, str) else str(cell)) for cell in cells))


def _tokens(tokens: Any) -> "list[Table]":
    table = _table("token", ">id", ">in the training text", "merges: pair, rank, count then")
    for piece in tokens.pieces[:40]:
        steps = [
            f"{m.left}+{m.right} #{m.rank + 1}" + (f" ({m.count:,})" if m.count >= 0 else "")
            for m in piece.merges
        ]
        last = ", ".join(("… " if len(steps) > 3 else "") + step for step in steps[-3:])
        _row(table, repr(piece.text), piece.id, f"{piece.count:,}" if piece.count >= 0 else "-", last or "-")
    strange = _table("never seen", "becomes", ">bytes among them")
    for stranger in tokens.strangers:
        _row(strange, stranger.text, " ".join(map(repr, stranger.pieces)), stranger.bytes_of_it)
    return [table, strange]


def _neighbours(embedding: Any) -> "list[Table]":
    table = _table("token", "nearest embeddings, with cosine", ">chance")
    for n in embedding.neighbours[:12]:
        near = ", ".join(f"{p!r} {c:.2f}" for p, c in zip(n.pieces[:4], n.cosine_K[:4], strict=True))
        _row(table, repr(n.piece), near, f"{n.chance:.2f}")
    return [table]


def _layers(layers: Any) -> "list[Table]":
    names = ("embedding", *(f"layer {m}" for m in range(1, len(layers.context_M))))
    title = f"vectors in the {layers.where}: cosines, and how much is context" if layers.where else None
    table = _table("after", ">same token", ">any two", ">own sentence", ">context", title=title)
    for m, name in enumerate(names):
        _row(
            table,
            name,
            f"{layers.self_similarity_M.value[m]:.3f}",
            f"{layers.any_similarity_M[m]:.3f}",
            f"{layers.sentence_similarity_M.value[m]:.3f}",
            f"{100 * layers.context_M[m]:.0f} %",
        )
    if not layers.probes:
        return [table]
    title = "share right by a linear probe, and by one of labels drawn by lot"
    probes = _table("after", *(f">{probe.task.partition(' (')[0]}" for probe in layers.probes), title=title)
    for m, name in enumerate(names):
        _row(probes, name, *(f"{p.accuracy_M.value[m]:.2f}, {p.control_M[m]:.2f}" for p in layers.probes))
    return [table, probes]


def _prediction(found: Any) -> "list[Table]":
    title = f"p at temperature {found.temperature:g}"
    best = _table("next token", ">logit", f">{title}", "its largest products: state x head, by feature")
    for k, piece in enumerate(found.best_pieces):
        products = found.products_KD[k]
        top = np.argsort(-np.abs(products))[:4]
        sums = " ".join(f"{products[d]:+.2f} (#{d})" for d in top)
        i = found.best_K[k]
        drawn = "  <- drawn" if i == found.drawn else ""
        shown = f"{found.logits_V[i]:.2f}", f"{found.probabilities_V[i]:.3f}"
        _row(best, repr(piece) + drawn, *shown, f"{sums} … = {products.sum():.2f}")
    if found.drawn is not None and found.drawn not in found.best_K:
        shown = f"{found.logits_V[found.drawn]:.2f}", f"{found.probabilities_V[found.drawn]:.3f}"
        _row(best, f"{found.drawn_piece!r}  <- drawn", *shown, "")
    lens = _table(
        "read out after", "likeliest next token", f">p of {found.best_pieces[0]!r}", ">nats per token"
    )
    for m, piece in enumerate(found.lens_best_pieces):
        nats = f"{found.lens_nats_MT[m].mean():.2f}" if found.lens_nats_MT.shape[1] else "-"
        _row(
            lens, f"layer {m}" if m else "embedding", repr(piece), f"{found.lens_probability_M[m]:.3f}", nats
        )
    return [best, lens]


def _calibration(found: Any) -> "Table":
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
    return table


def _positions(found: Any) -> "Table":
    table = _table("place in the window", ">nats per token", "95 %")
    for first, last, *e in zip(found.first_Y, found.last_Y, *found.nats_Y, strict=True):
        place = f"{first + 1} to {last + 1}" if last > first else str(first + 1)
        _row(table, place, f"{e[0]:.2f}", f"[{e[1]:.2f}, {e[2]:.2f}]")
    return table


SHORT = {"punctuation": "marks", "same place": "place", "end of the sentence": "end"}
"""Roles of heads as heads of columns; of the others, the first word."""


def _heads(heads: Any, ablation: Any) -> "Table":
    from zerotollm.explain.attention import NAMES

    short = [SHORT.get(role, role.split()[0]) for role in heads.roles]
    title = f"{NAMES[heads.where]}, as layer.head: share of attention, by role"
    named = heads.named()
    roles = ["role"] if named else []
    table = _table("head", *roles, *(f">{s}" for s in short), ">entropy", ">loss without", title=title)
    for i, h in np.ndindex(heads.entropy_LH.shape):
        _row(
            table,
            f"{i + 1}.{h + 1}",
            *([named.get((i, h), "")] if named else []),
            *(f"{x:.2f}" for x in heads.score_PLH.value[:, i, h]),
            f"{heads.entropy_LH[i, h]:.2f}",
            f"{ablation.rise_LH.value[i, h]:+.3f}",
        )
    even = (*(f"{x:.2f}" for x in heads.even_P), f"{heads.even_entropy:.2f}", "")
    _row(table, "evenly", *([""] if named else []), *even)
    return table


def _looks(maps: Any) -> "Table":
    where = f" in the {maps.where}" if maps.where else ""
    table = _table("head", f"where the last token of the text looks{where}")
    for i, h in np.ndindex(maps.weights_LHTS.shape[:2]):
        last_S = maps.weights_LHTS[i, h, -1]
        most = ", ".join(f"{maps.pieces[s]!r} {last_S[s]:.2f}" for s in np.argsort(-last_S)[:4])
        _row(table, f"{i + 1}.{h + 1}", most)
    return table


def _alignment(found: Any) -> "Table":
    table = _table("writes", "while it looks at, mean of all heads")
    for piece, looks_S in zip(found.target, found.weights_LHTS.mean((0, 1)), strict=True):
        most = ", ".join(f"{found.source[s]!r} {looks_S[s]:.2f}" for s in np.argsort(-looks_S)[:4])
        _row(table, repr(piece), most)
    return table


def _tokenizers(found: Any) -> "list[Table]":
    table = _table("tokenizer", ">vocabulary", ">bytes per token", "the text")
    for name, size, rate, cut in zip(
        found.names, found.vocab_size_Y, found.bytes_per_token_Y, found.cuts, strict=True
    ):
        _row(table, name, f"{size:,}", f"{rate:.2f}", "|".join(cut[:60]))
    return [table]


def _meaning(found: Any) -> "list[Table]":
    table = _table(">step", ">cosine with shared contexts", ">p", ">with the same sentence", ">p")
    alone = _table(">step", ">contexts, sentence held fixed", ">sentence, contexts held fixed")
    for y, step in enumerate(found.steps_Y):
        p = f"{found.p_contexts_Y[y]:.3f}", f"{found.p_together_Y[y]:.3f}"
        _row(table, step, found.contexts[y], p[0], found.together[y], p[1])
        _row(alone, step, f"{found.contexts_alone_Y[y]:.2f}", f"{found.together_alone_Y[y]:.2f}")
    return [table, alone]


def _generation(found: Any) -> "list[Table]":
    measures = _table("measure", ">its own texts", ">real ones")
    for name, field in (
        ("longest copied span, tokens", "longest_copy"),
        ("4-grams that came before", "repetition"),
        ("bits per byte", "bits_per_byte"),
        ("its source helps, nats" if found.sources else "halves belong together, nats", "coherence"),
    ):
        _row(measures, name, getattr(found.own, field), getattr(found.real, field))
    for n in range(3):
        _row(
            measures,
            f"distinct {n + 1}-grams",
            f"{found.own.distinct[n]:.2f}",
            f"{found.real.distinct[n]:.2f}",
        )
    samples = _table("sample", "longest span that is in the training text, with its surroundings there")
    for text, copied, near in zip(found.samples[:3], found.own.copied, found.nearest, strict=False):
        _row(samples, " ".join(text.split())[:300], f"{copied.length} tokens: … {' '.join(near.split())} …")
    return [measures, samples]


def _learning(found: Any) -> "list[Table]":
    tables = []
    for names, groups_YG in (
        (found.band_names, found.band_YG.value),
        (found.part_names, found.part_YG.value),
    ):
        table = _table(">step", *(f">{name}" for name in names), title="loss, nats per token")
        for step, row in zip(found.steps_Y, groups_YG, strict=True):
            _row(table, step, *("-" if np.isnan(x) else f"{x:.2f}" for x in row))
        tables.append(table)
    gain = found.induction_Y
    table = _table(">step", ">loss of all", *([] if gain is None else [">gain of repetition"]))
    for y, step in enumerate(found.steps_Y):
        _row(
            table,
            step,
            f"{found.loss_Y.value[y]:.2f}",
            *([] if gain is None else [f"{gain.value[y]:+.2f}"]),
        )
    return [*tables, table]
