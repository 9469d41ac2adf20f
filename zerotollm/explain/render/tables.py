"""The numbers of answers as tables of texts, for a terminal and for a page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from zerotollm.explain.ablation import Ablation
from zerotollm.explain.alignment import Alignment
from zerotollm.explain.answer import Answer
from zerotollm.explain.attention import NAMES, AttentionMaps, Heads
from zerotollm.explain.calibration import Calibration, LossByPosition
from zerotollm.explain.embeddings import Embeddings
from zerotollm.explain.estimates import Estimate
from zerotollm.explain.figures.marks import said, visible
from zerotollm.explain.generation import Generation
from zerotollm.explain.grammar import Grammar, Rule
from zerotollm.explain.layers import Layers, state_names
from zerotollm.explain.learning import Learning
from zerotollm.explain.meaning import Meaning
from zerotollm.explain.memorization import Memorization
from zerotollm.explain.prediction import Prediction
from zerotollm.explain.sources import Sources
from zerotollm.explain.tokenization import Tokenization, TokenizerComparison

TOKENS, NEIGHBOURS, TARGETS = 40, 12, 32
"""Rows at most: tokens of the text, tokens with their nearest neighbours, tokens of a translation."""
PIECES = 60
"""Tokens of a text under another tokenizer."""
MAPS = 8
"""Heads of which the table says where they look, the most focused first."""
HEADS = 24
"""Heads in the table of all heads: those with a role, then those without which the loss changes most."""
SPANS = 8
"""Spans of a text in the training text, the longest first."""
BAR = 20
"""Characters of a bar of 100 %."""
SHORT_ROLES = {
    "previous token": "previous", "next token": "next", "same token": "same", "first token": "first",
    "same place": "place", "end of the sentence": "end", "punctuation": "marks",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of texts. The name of a column of numbers, which are aligned right, starts with `>`."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    folded: bool = False
    """a page shows only the title at first"""
    kind: ClassVar[str] = "table"

    def columns(self) -> list[tuple[str, bool]]:
        """Return the name of each column, and whether it is of numbers."""
        return [(name.removeprefix(">"), name.startswith(">")) for name in self.head]


def table_of(columns: Mapping[str, Sequence[str]], title: str = "") -> Table:
    """Return a table of columns by name."""
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)), title)


def with_interval(estimate: Estimate, digits: int = 2) -> str:
    """Return value [low, high], or - for one that was not measured."""
    if not np.isfinite(estimate.value):
        return "-"
    return "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*estimate, digits)


def _count(count: int) -> str:
    return f"{count:,}" if count >= 0 else "-"  # -1: the training text is not known


def token_table(
    tokens: Tokenization, show: Callable[[str], str], most: int, merges: int | None = None
) -> Table:
    """Return the first `most` tokens of the text, with the last `merges` merges that built each (None: all)."""
    merged = any(piece.merges for piece in tokens.pieces)  # no merges, or unknown ones, made other tokenizers
    rows = []
    for piece in tokens.pieces[:most]:
        steps = [
            f"{m.left}+{m.right} #{m.rank + 1:,}" + (f" ({m.count:,})" if m.count >= 0 else "")
            for m in piece.merges
        ]
        shown = steps if merges is None else steps[-merges:]
        cell = ("… " if len(shown) < len(steps) else "") + ", ".join(shown) or "-"
        rows.append((show(piece.text), str(piece.id), _count(piece.count), *([cell] if merged else [])))
    head = (
        "token",
        ">id",
        ">in the training text",
        *(["merges: pair #rank (count when merged)"] if merged else []),
    )
    return Table(head, rows, "Tokens of the text and the merges that built them", folded=len(rows) > 12)


def stranger_table(tokens: Tokenization, show: Callable[[str], str], most: int | None = None) -> Table:
    """Return how words and scripts that are rare in the training text are split, `most` tokens of each."""
    rows = []
    for stranger in tokens.strangers:
        shown = stranger.pieces[:most]
        rest = f" … ({len(stranger.pieces)})" if len(shown) < len(stranger.pieces) else ""
        pieces = " ".join(map(show, shown)) + rest
        rows.append((stranger.text, _count(stranger.count), pieces, str(stranger.bytes_of_it)))
    head = ("text", ">in the training text", "tokens", ">byte tokens")
    return Table(head, rows, "Words and scripts that are rare in the training text")


def tokenizer_table(comparison: TokenizerComparison, most: int | None = None) -> Table:
    """Return how other tokenizers split the text, `most` tokens of each."""
    sizes, rates = comparison.vocab_size_Y, comparison.bytes_per_token_Y
    rows = [
        (name, f"{size:,}", f"{rate:.2f}", "|".join(map(visible, cut[:most])))
        for name, size, rate, cut in zip(comparison.names, sizes, rates, comparison.cuts, strict=True)
    ]
    head = ("tokenizer", ">vocabulary", ">bytes per token", "the text")
    return Table(head, rows, "The same text under other tokenizers")


def _neighbours(embedding: Embeddings) -> list[Table]:
    rows = []
    for n in embedding.neighbours[:NEIGHBOURS]:
        near = ", ".join(f"{p!r} {c:.2f}" for p, c in zip(n.pieces[:3], n.cosine_K[:3], strict=True))
        rows.append((repr(n.piece), near, f"{n.chance:.2f}"))
    return [Table(("token", "nearest embeddings, with cosine", ">chance"), rows)]


def _meaning(meaning: Meaning) -> list[Table]:
    contexts = meaning.contexts, meaning.contexts_alone_Y, meaning.p_contexts_Y
    together = meaning.together, meaning.together_alone_Y, meaning.p_together_Y
    tables = []
    for what, other, (estimates, alone_Y, p_Y) in (
        ("shared contexts", "sentence", contexts),
        ("the same sentence", "contexts", together),
    ):
        columns = {
            ">step": said("{}", meaning.steps_Y),
            ">Spearman": tuple(map(with_interval, estimates)),
            ">p": said("{:.3f}", p_Y),
            f">{other} held fixed": said("{:.2f}", alone_Y),
        }
        tables.append(table_of(columns, f"Correlation of the cosine of two embeddings with {what}"))
    return tables


def _layers(layers: Layers) -> list[Table]:
    names, where = state_names(len(layers.context_M)), f" in the {layers.where}" if layers.where else ""
    cosines = {
        "after": names,
        ">same token elsewhere": said("{:.3f}", layers.self_similarity_M.value),
        ">any two tokens": said("{:.3f}", layers.any_similarity_M),
        ">own sentence": said("{:.3f}", layers.sentence_similarity_M.value),
        ">variance by context": said("{:.0f} %", 100 * layers.context_M),
    }
    probes = {
        f">{probe.task.partition(' (')[0]}": said("{:.2f}, {:.2f}", probe.accuracy_M.value, probe.control_M)
        for probe in layers.probes
    }
    tables = [table_of(cosines, f"Cosine{where} of a token's vector with the vectors of the columns")]
    if probes:
        title = f"Accuracy{where} of a linear probe, and of one trained on random labels"
        tables.append(table_of({"after": names} | probes, title))
    return tables


def _prediction(prediction: Prediction) -> list[Table]:
    def numbers(i: int) -> tuple[str, ...]:
        columns = prediction.logits_V, prediction.probabilities_V, prediction.sampled_V
        return tuple(f"{x_V[i]:.{digits}f}" for x_V, digits in zip(columns, (2, 3, 3), strict=True))

    best = []
    columns = prediction.best_K, prediction.best_pieces, prediction.products_KD
    for i, piece, products_D in zip(*columns, strict=True):
        largest = " ".join(f"{products_D[d]:+.2f} (#{d})" for d in np.argsort(-np.abs(products_D))[:3])
        drawn = "  <- drawn" if i == prediction.drawn else ""
        best.append((repr(piece) + drawn, *numbers(i), f"{largest} …"))
    if prediction.drawn is not None and prediction.drawn not in prediction.best_K:
        best.append((f"{prediction.drawn_piece!r}  <- drawn", *numbers(prediction.drawn), ""))
    sampler = f">sampler's, at temperature {prediction.temperature:g}"
    lens = {
        "read out after": state_names(len(prediction.lens_pieces)),
        "likeliest next token": said("{!r}", prediction.lens_best_pieces),
        f">p of {prediction.best_pieces[0]!r}": said("{:.3f}", prediction.lens_probability_M),
        ">nats per token": [f"{x_T.mean():.2f}" if len(x_T) else "-" for x_T in prediction.lens_nats_MT],
    }
    return [
        Table(("next token", ">logit", ">p", sampler, "largest products, state x head (#feature)"), best),
        table_of(lens),
    ]


def _calibration(calibration: Calibration) -> list[Table]:
    at = np.flatnonzero(calibration.count_X)
    edges, share = 100 * calibration.edges, calibration.accuracy_X.value[at]
    columns = {
        "confidence": said("{:.0f} to {:.0f} %", edges[at], edges[at + 1]),
        ">tokens": said("{:,}", calibration.count_X[at]),
        ">mean confidence": said("{:.1f} %", 100 * calibration.confidence_X[at]),
        ">correct": said("{:.1f} %", 100 * share),
        "": ["█" * round(BAR * x) for x in share],
    }
    return [table_of(columns)]


def _positions(positions: LossByPosition) -> list[Table]:
    places = [
        f"{first + 1} to {last + 1}" if last > first else str(first + 1)
        for first, last in zip(positions.first_Y, positions.last_Y, strict=True)
    ]
    losses = [with_interval(positions.nats_Y.at(y)) for y in range(len(places))]
    return [table_of({f"position in the {positions.of}": places, ">nats per token": losses})]


def head_tables(heads: Heads, ablation: Ablation) -> list[Table]:
    """Return two tables of a row for each head: its roles and its entropy; the rise of the loss without it."""
    roles = {head: SHORT_ROLES.get(role, role) for head, role in heads.named().items()}
    without_LH, mean_LH = ablation.rise_LH.value, ablation.mean_rise_LH.value
    all_heads = list(np.ndindex(heads.entropy_LH.shape))
    order = sorted(all_heads, key=lambda head: (head not in roles, -abs(without_LH[head])))
    name = NAMES[heads.where].capitalize()
    of_all = f"; {HEADS} of {len(all_heads)}, all are in the report" if len(all_heads) > HEADS else ""
    shown = sorted(order[:HEADS])

    def column(x_LH: np.ndarray, even: str, form: str = ".2f") -> list[str]:
        return [*(f"{x_LH[head]:{form}}" for head in shown), even]

    columns = {"head": [*(f"{i + 1}.{h + 1}" for i, h in shown), "evenly"]}
    if roles:
        columns["role"] = [*(roles.get(head, "") for head in shown), ""]
    for role, score_LH, even in zip(heads.roles, heads.score_PLH.value, heads.even_P, strict=True):
        columns[f">{SHORT_ROLES.get(role, role)}"] = column(score_LH, f"{even:.2f}")
    columns[">entropy"] = column(heads.entropy_LH, f"{heads.even_entropy:.2f}")
    losses = {
        "head": columns["head"][:-1],
        ">without it": [f"{without_LH[head]:+.3f}" for head in shown],
        ">with its mean output": [f"{mean_LH[head]:+.3f}" for head in shown],
    }
    return [
        table_of(columns, f"{name}, as layer.head: attention by role{of_all}"),
        table_of(losses, f"{name}: nats added to the loss{of_all}"),
    ]


def _most_attended(pieces: Sequence[str], weights_S: np.ndarray) -> str:
    return ", ".join(f"{pieces[s]!r} {weights_S[s]:.2f}" for s in np.argsort(-weights_S)[:4])


def _attention(maps: AttentionMaps) -> list[Table]:
    where = f" in the {maps.where}" if maps.where else ""
    entropy_LH = maps.entropy_LHT[..., -1]
    focused = sorted(np.ndindex(entropy_LH.shape), key=lambda head: entropy_LH[head])[:MAPS]
    last_LHS = maps.weights_LHTS[:, :, -1]
    rows = [(f"{i + 1}.{h + 1}", _most_attended(maps.pieces, last_LHS[i, h])) for i, h in focused]
    head = ("head", f"where the last token of the text looks{where}")
    return [Table(head, rows, f"The most focused heads{where}, as layer.head")]


def _alignment(alignment: Alignment) -> list[Table]:
    mean_TS = alignment.weights_LHTS.mean((0, 1))
    pairs = list(zip(alignment.target, mean_TS, strict=False))
    rows = [(repr(piece), _most_attended(alignment.source, looks_S)) for piece, looks_S in pairs[:TARGETS]]
    title = "Attention of the translation to its source"
    if len(pairs) > TARGETS:
        title += f": the first {TARGETS} of {len(pairs)} tokens, all are in the report"
    return [Table(("token", "looks at, mean of all heads"), rows, title)]


def _generation(generation: Generation) -> list[Table]:
    before = "source" if generation.sources else "first half"
    measured = generation.own, generation.real, generation.difference
    rows = [
        (name, *(with_interval(getattr(measures, field), digits) for measures in measured))
        for name, field, digits in (
            ("longest copied span, tokens", "longest_copy", 1),
            ("4-grams that came before", "repetition", 3),
            ("bits per byte", "bits_per_byte", 2),
            (f"loss saved by its {before}, nats", "coherence", 3),
        )
    ]
    for n, (own, real) in enumerate(zip(generation.own.distinct, generation.real.distinct, strict=True), 1):
        rows.append((f"distinct {n}-grams", f"{own:.2f}", f"{real:.2f}", ""))
    return [Table(("measure", ">its own texts", ">real ones", ">own - real"), rows)]


def sources_table(sources: Sources, most: int = SPANS) -> Table:
    """Return the longest spans of a text, each with the training passage most like its surroundings."""
    rows = []
    for span in sorted(sources.spans, key=lambda span: -span.length)[:most]:
        nearest = span.passages[0]
        where = f"{nearest.document}: " if nearest.document else ""
        passage = f"{where}… {_flat(nearest.before)} [{_flat(span.text)}] {_flat(nearest.after)} …"
        p_value = f"{span.p_value:.3f}" if len(sources.real_K) > 1 else "-"
        rows.append((str(span.length), f"{span.occurrences:,}", p_value, passage))
    head = (
        ">tokens",
        ">in the training text",
        ">p-value",
        "training passage most like it, the span in brackets",
    )
    title = "The longest spans that are in the training text"
    return Table(head, rows, title)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _memorization(memorization: Memorization) -> list[Table]:
    rows = [
        ("training text", with_interval(memorization.trained, 3)),
        ("held-out text", with_interval(memorization.held_out, 3)),
        ("memorized: held-out minus training", with_interval(memorization.gap, 3)),
        ("learned: frequencies minus model, held out", with_interval(memorization.learned, 3)),
    ]
    return [Table(("loss", ">nats per token"), rows)]


def grammar_table(rules: Sequence[Rule], title: str = "", folded: bool = False) -> Table:
    """Return rules of grammar with their accuracies, in the order of their birth."""
    last = max((rule.born or 0 for rule in rules), default=0) + 1
    ordered = sorted(rules, key=lambda rule: rule.born if rule.born is not None else last)
    accuracies = [Estimate(*(100 * x_Y[-1] for x_Y in rule.accuracy_Y)) for rule in ordered]
    columns = {
        "": [rule.title for rule in ordered],
        ">from step": [f"{rule.born:,}" if rule.born is not None else "not shown" for rule in ordered],
        ">% right at the end": [with_interval(accuracy, 0) for accuracy in accuracies],
        ">without training": [f"{100 * rule.chance:.0f}" for rule in ordered],
        ">by frequency": [f"{100 * rule.frequencies:.0f}" for rule in ordered],
        ">times its words occur per million": [f"{rule.per_million:,.0f}" for rule in ordered],
        ">% of pairs with known words": [f"{100 * rule.known:.0f}" for rule in ordered],
    }
    return replace(table_of(columns, title), folded=folded)


def _learning(learning: Learning) -> list[Table]:
    total = {">all tokens": said("{:.2f}", learning.loss_Y.value)}
    if learning.induction_Y is not None:
        total[">gain of repetition"] = said("{:+.2f}", learning.induction_Y.value)
    groups = (learning.band_names, learning.band_YG), (learning.part_names, learning.part_YG)
    by_group = [
        {
            f">{name}": tuple("-" if np.isnan(loss) else f"{loss:.2f}" for loss in loss_Y)
            for name, loss_Y in zip(names, loss_YG.value.T, strict=True)
            if not np.isnan(loss_Y).all()
        }
        for names, loss_YG in groups
    ]
    steps = {">step": said("{}", learning.steps_Y)}
    return [table_of(steps | columns, "Loss, nats per token") for columns in (*by_group, total)]


TABLES: dict[type[Answer], Callable[[Any], list[Table]]] = {
    Tokenization: lambda tokens: [
        token_table(tokens, repr, TOKENS, merges=2),
        stranger_table(tokens, repr, 6),
    ],
    TokenizerComparison: lambda comparison: [tokenizer_table(comparison, PIECES)],
    Embeddings: _neighbours,
    Meaning: _meaning,
    Layers: _layers,
    Prediction: _prediction,
    Calibration: _calibration,
    LossByPosition: _positions,
    AttentionMaps: _attention,
    Alignment: _alignment,
    Generation: _generation,
    Learning: _learning,
    Sources: lambda sources: [sources_table(sources)] if sources.spans else [],
    Memorization: _memorization,
    Grammar: lambda grammar: [grammar_table(grammar.rules)],
}
"""The tables of each answer; `head_tables` are of two answers."""
