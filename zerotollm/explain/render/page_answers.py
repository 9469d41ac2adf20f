"""Answers as sections of a page: for each question its sentences, figures and tables."""

import numpy as np

from zerotollm.explain.answer import Answer
from zerotollm.explain.explanation import Explanation, RunExplanation
from zerotollm.explain.figures.marks import visible
from zerotollm.explain.generation import Generation
from zerotollm.explain.grammar import Grammar
from zerotollm.explain.render.page import Block, Explorer, Figure, Section, Texts
from zerotollm.explain.render.questions import QUESTIONS
from zerotollm.explain.render.tables import (
    grammar_table,
    sources_table,
    stranger_table,
    token_table,
    tokenizer_table,
)
from zerotollm.explain.sources import Sources
from zerotollm.explain.tokenization import Tokenization, TokenizerComparison

TOKENS = 64
"""Tokens of the text in a table."""


def answer_sections(
    text: Explanation, run: RunExplanation | None, why_no_run: str = ""
) -> tuple[Section, ...]:
    """Return a section for the text itself and one for each question.

    Without answers about the run, `why_no_run` takes their place.
    """
    run_sentences = run.sentences() if run else {}
    text_sentences = text.sentences()
    sections = []
    for question in QUESTIONS:
        sentences, blocks = [], []
        for name in dict.fromkeys(question.answers + question.run_answers):
            answer, sentence = getattr(text, name, None), text_sentences.get(name, "")
            if name in question.run_answers and (name in run_sentences or name not in question.answers):
                answer, sentence = getattr(run, name, None), run_sentences.get(name, why_no_run)
            sentences.append(sentence)
            blocks += _blocks(answer) if answer is not None else []
        unique = tuple(dict.fromkeys(sentence for sentence in sentences if sentence))
        lesson = f"{question.lesson} {question.figures}" if blocks else question.lesson
        short = question.id.capitalize()
        sections.append(Section(question.id, short, question.title, unique, tuple(blocks), lesson))
    return (*_explorer(text), *sections)


def _blocks(answer: Answer) -> list[Block]:
    figure = Figure(answer.show())
    match answer:
        case Tokenization():
            return [token_table(answer, visible, TOKENS), figure, stranger_table(answer, visible)]
        case TokenizerComparison():
            return [tokenizer_table(answer), figure] if any(answer.cuts) else [figure]
        case Generation():
            return [figure, _copies(answer)]
        case Grammar():
            parts = [part for rule in answer.rules for part in rule.parts]
            title = f"All {len(parts)} paradigms"
            tables = [grammar_table(parts, title, folded=True)] if parts else []
            return [grammar_table(answer.rules), figure, *tables]
        case Sources():
            return [_written(answer), figure, sources_table(answer, len(answer.spans))]
    return [figure]


def _explorer(text: Explanation) -> tuple[Section, ...]:
    prediction, maps = text.prediction, text.attention
    if prediction is None or maps is None or len(prediction.pieces) != len(maps.pieces):
        return ()  # the prediction about a translation is in its middle
    L, H, T, _ = maps.weights_LHTS.shape
    names = ("all heads", *(f"layer {i + 1}, head {h + 1}" for i, h in np.ndindex(L, H)))
    mean_1TS = maps.weights_LHTS.mean((0, 1))[None]
    block = Explorer(
        tuple(map(visible, prediction.pieces)),
        names,
        np.concatenate([mean_1TS, maps.weights_LHTS.reshape(L * H, T, T)]),
        tuple(tuple(map(visible, row)) for row in prediction.next_pieces),
        prediction.next_p_TK,
    )
    return (Section("text", "Text", "Your text, token by token", (f"“{text.text.strip()}”",), (block,)),)


def _written(sources: Sources) -> Texts:
    span = sources.longest()
    head = (
        f"{span.length} consecutive tokens are in the training text"
        if span
        else "nothing is in the training text"
    )
    return Texts(
        f"{sources.subject[:1].upper()}{sources.subject[1:]}; its longest span that is in the training text is marked",
        ((head, (sources.text,), span.text if span else ""),),
    )


def _copies(generation: Generation) -> Texts:
    texts = []
    for number, (sample, span, near, copy) in enumerate(
        zip(generation.samples, generation.copied, generation.nearest, generation.own.copied, strict=True)
    ):
        head = f"text {number + 1}: {copy.length} consecutive tokens are in the training text"
        source = (f"Source: {generation.sources[number]}",) if generation.sources else ()
        texts.append((head, (*source, sample, f"Training text: … {near.strip()} …"), span))
    title = "What it writes; the longest span that is in the training text is marked"
    return Texts(title, tuple(texts))
