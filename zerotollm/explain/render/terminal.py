"""Answers on a terminal of 80 columns: for each question its tables, and below them the sentences that answer it."""

from textwrap import wrap

import rich.table
from rich.box import SIMPLE_HEAD
from rich.text import Text

from zerotollm.explain.explanation import Explanation, RunExplanation
from zerotollm.explain.generation import Generation
from zerotollm.explain.render.questions import QUESTIONS
from zerotollm.explain.render.tables import TABLES, Table, head_tables

Shown = list[str | rich.table.Table]
"""Texts and tables in their order; a text that ends with a colon is the title of the table after it."""
FIRST_COLUMN = 9
"""Least width of a first column: "embedding" fits."""
NUMBER_HEAD = 9
"""Largest width of the name of a column of numbers, if its words allow it."""
SAMPLES = 3
SAMPLE_CHARACTERS = 160


def question_tables(explanation: Explanation | RunExplanation) -> list[tuple[str, Shown]]:
    """Return the questions that are answered, each with its tables and sentences."""
    sentences = explanation.sentences()
    questions = []
    for question in QUESTIONS:
        shown: Shown = []
        if question.id == "sources" and isinstance(explanation, Explanation) and explanation.sources:
            shown.append(explanation.sources.quoted())
        for name in question.answers if isinstance(explanation, Explanation) else question.run_answers:
            for table in _tables(explanation, name):
                shown += [f"{table.title}:"] if table.title else []
                shown.append(rich_table(table))
            answer = getattr(explanation, name)
            if isinstance(answer, Generation):
                shown += _samples(answer)
            # Several answers may be left out for the same reason.
            if name in sentences and sentences[name] not in shown:
                shown.append(sentences[name])
        if shown:
            questions.append((question.title, shown))
    return questions


def _tables(explanation: Explanation | RunExplanation, name: str) -> list[Table]:
    answer = getattr(explanation, name)
    if name.endswith("heads"):
        ablation = getattr(explanation, name.removesuffix("heads") + "ablation")
        return head_tables(answer, ablation) if answer and ablation else []
    return TABLES[type(answer)](answer) if type(answer) in TABLES else []


def rich_table(table: Table) -> rich.table.Table:
    """Return a table for a terminal of 80 columns."""
    out = rich.table.Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, (name, is_number) in enumerate(table.columns()):
        if is_number:
            name = "\n".join(wrap(name, NUMBER_HEAD, break_long_words=False))
            out.add_column(name, justify="right", no_wrap=True, min_width=None if i else FIRST_COLUMN)
        else:
            out.add_column(name, min_width=None if i else FIRST_COLUMN)
    for row in table.rows:
        out.add_row(*map(Text, row))
    return out


def _samples(generation: Generation) -> list[str]:
    texts = []
    samples = zip(generation.samples, generation.own.copied, generation.nearest, strict=False)
    for number, (sample, copied, near) in enumerate(list(samples)[:SAMPLES]):
        source = [f"source: {_shorten(generation.sources[number])}"] if generation.sources else []
        name = "translation" if generation.sources else f"text {number + 1}"
        copy = f"{copied.length} tokens of it are in the training text: … {' '.join(near.split())} …"
        texts.append("\n".join([*source, f"{name}: {_shorten(sample)}", copy]))
    return texts


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]} …"
