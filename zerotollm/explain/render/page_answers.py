"""The eight questions as sections of a report, from an explanation of a text and a study of the run."""

from typing import Any

import numpy as np

from zerotollm.explain.explanation import Explanation, RunExplanation
from zerotollm.explain.figures.helpers import visible
from zerotollm.explain.render.page import Block, Explorer, Figure, Section, Table, Texts

SHOWN = 64
"""Tokens of the text in tables."""


def answer_sections(
    found: Explanation, study: RunExplanation | None, why_no_study: str = ""
) -> tuple[Section, ...]:
    """Text explorer and the questions, in the order of the notes. What is missing is said in its place."""
    said, said_of_run = found.sentences(), study.sentences() if study else {}

    def sentences(*names: str) -> tuple[str, ...]:
        """Of the text's answers and, after a dot, of the run's."""
        lines = []
        for name in names:
            of_run = name.startswith(".")
            line = (said_of_run if of_run else said).get(name.lstrip("."), why_no_study if of_run else "")
            lines.append(line)
        return tuple(dict.fromkeys(line for line in lines if line))

    def pictures(*answers: Any) -> tuple[Block, ...]:
        return tuple(Figure(answer.show()) for answer in answers if answer is not None)

    of = study or RunExplanation()
    layers = of.layers or found.layers
    learned = "layers" if of.layers is None else ".layers"
    sections = [
        Section(
            "tokens",
            "Tokens",
            "Why is the text split this way? Is it by frequency?",
            sentences("tokens", ".tokenizers"),
            (
                _merges(found),
                *pictures(found.tokens),
                _strangers(found),
                *_cuts(of),
                *pictures(of.tokenizers),
            ),
        ),
        Section(
            "embedding",
            "Embedding",
            "What is an embedding, how many dimensions are there, is it 2D or 3D?",
            sentences("embedding"),
            pictures(found.embedding),
        ),
        Section(
            "meaning",
            "Meaning",
            "How is meaning determined? Are vectors closer when tokens are used in the same sentence?",
            sentences(".meaning"),
            pictures(of.meaning),
        ),
        Section(
            "layers",
            "Layers",
            "What is the difference between the encoding layer and the embedding layer; why two?",
            sentences("encoder_layers", learned),
            pictures(found.encoder_layers, layers),
        ),
        Section(
            "prediction",
            "Prediction",
            "How is the next token predicted; what is the math?",
            sentences("prediction", "calibration", "positions"),
            pictures(found.prediction, found.calibration, found.positions),
        ),
        Section(
            "attention",
            "Attention",
            "How does attention stay focused?",
            sentences(
                "encoder_attention",
                "encoder_heads",
                "encoder_ablation",
                "attention",
                "alignment",
                "heads",
                "ablation",
                "cross_heads",
                "cross_ablation",
            ),
            pictures(
                found.encoder_attention,
                found.encoder_heads,
                found.encoder_ablation,
                found.attention,
                found.heads,
                found.ablation,
                found.alignment,
                found.cross_heads,
                found.cross_ablation,
            ),
        ),
        Section(
            "generation",
            "Writing",
            "Does it generate meaningful output or only grammatical output?",
            sentences(".generation"),
            (*pictures(of.generation), *_copies(of)),
        ),
        Section(
            "learning",
            "Learning",
            "What did it learn, when?",
            sentences(".learning"),
            pictures(of.learning),
        ),
    ]
    return (*_explorer(found), *sections)


def _explorer(found: Explanation) -> tuple[Section, ...]:
    prediction, maps = found.prediction, found.attention
    if prediction is None or maps is None or len(prediction.pieces) != len(maps.pieces):
        return ()  # of a translation the prediction is that in its middle
    L, H, T, _ = maps.weights_LHTS.shape
    names = ("all heads", *(f"layer {i + 1}, head {h + 1}" for i, h in np.ndindex(L, H)))
    weights_HTS = np.concatenate(
        [maps.weights_LHTS.mean((0, 1))[None], maps.weights_LHTS.reshape(L * H, T, T)]
    )
    block = Explorer(
        tuple(map(visible, prediction.pieces)),
        names,
        weights_HTS,
        tuple(tuple(map(visible, row)) for row in prediction.next_pieces),
        prediction.next_p_TK,
    )
    title = "Your text, token by token"
    return (Section("text", "Text", title, (f"“{found.text.strip()}”",), (block,)),)


def _merges(found: Explanation) -> Table:
    rows = []
    for piece in found.tokens.pieces[:SHOWN]:
        steps = [
            f"{m.left}+{m.right} #{m.rank + 1:,}" + (f" ({m.count:,})" if m.count >= 0 else "")
            for m in piece.merges
        ]
        count = f"{piece.count:,}" if piece.count >= 0 else "-"
        rows.append((visible(piece.text), str(piece.id), count, ", ".join(steps) or "-"))
    head = ("token", "id", "in the training text", "merges in order: pair, rank (count then)")
    return Table(
        head, tuple(rows), "The text's tokens and the merges that built their words", folded=len(rows) > 12
    )


def _strangers(found: Explanation) -> Table:
    rows = tuple(
        (
            s.text,
            f"{s.count:,}" if s.count >= 0 else "-",
            " ".join(map(visible, s.pieces)),
            str(s.bytes_of_it),
        )
        for s in found.tokens.strangers
    )
    head = ("text", "in the training text", "becomes", "bytes among them")
    return Table(head, rows, "Words, scripts and signs that a training text may not have")


def _cuts(study: RunExplanation) -> tuple[Block, ...]:
    if study.tokenizers is None or not any(study.tokenizers.cuts):
        return ()
    found = study.tokenizers
    rows = tuple(
        (name, f"{size:,}", " | ".join(map(visible, cut)))
        for name, size, cut in zip(found.names, found.vocab_size_Y, found.cuts, strict=True)
    )
    return (
        Table(("tokenizer", "vocabulary", "the text under it"), rows, "The same text under other tokenizers"),
    )


def _copies(study: RunExplanation) -> tuple[Block, ...]:
    found = study.generation
    if found is None:
        return ()
    texts = []
    each = zip(found.samples, found.copied, found.nearest, found.own.copied, strict=True)
    for number, (sample, span, source, copy) in enumerate(each, 1):
        head = f"text {number}: {copy.length} tokens in a row stand in the training text"
        begins = (f"To be translated: {found.sources[number - 1]}",) if found.sources else ()
        texts.append((head, (*begins, sample, f"There: … {source.strip()} …"), span))
    return (
        Texts("What it writes; marked is the longest span that stands in the training text", tuple(texts)),
    )
