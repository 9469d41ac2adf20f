"""explain: what a trained model does with one text, measured, on the terminal; the numbers go to explain.json."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerotollm.actions.config import ExplainOptions
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically

NAME = "explain.json"


def explain(experiment: Experiment, run_dir: Path, options: ExplainOptions) -> dict[str, Any]:
    """Answers the questions that one text can, and with `whole_run` the others too, as tables with a sentence each.

    Writes the numbers, without long arrays, to `explain.json` in the run directory and returns them. Raises UsageError
    where there is no text or no checkpoint, or `options.into` has no place for the table.
    """
    if not options.text:
        raise UsageError(
            'explain takes a text to look at: explain "In the beginning God created the heavens"'
        )
    # Imported here: the command line asks this package for its options only.
    from zerotollm.console import Console
    from zerotollm.explain.explanation import numbers
    from zerotollm.explain.render.markdown import questions_markdown
    from zerotollm.explain.render.terminal import study_tables, text_tables
    from zerotollm.run import load
    from zerotollm.session.compilation_cache import cache_compiled_programs
    from zerotollm.studies.markdown_page import read_page, with_table

    page = Path(options.into)
    if options.into:  # asked first: what follows takes a while
        with_table(read_page(page), "questions", "", page)
    cache_compiled_programs(experiment.data)
    run = replace(load(run_dir, options.checkpoint), experiment=experiment)
    console = Console()

    def show(title: str, shown: list[Any]) -> None:
        console.print(f"\n{title}", style="bold")
        above = ""
        for item in shown:
            # A line above a table belongs to it.
            console.print(*([] if above.endswith(":") else [""]), item, sep="\n")
            above = item if isinstance(item, str) else ""

    def keep(result: dict[str, Any]) -> None:
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(run_dir / NAME, text + "\n")

    explanation = run.explain(options.text)
    result = {"step": run.step, "text": options.text, "explanation": numbers(explanation)}
    keep(result)
    for question in text_tables(explanation):
        show(*question)
    study = None
    if options.whole_run:
        study = run.study(options.text)
        result["study"] = numbers(study)
        keep(result)
    if options.into:
        table = questions_markdown(run.step, explanation, study)
        write_atomically(page, with_table(read_page(page), "questions", table, page))
    if options.whole_run:
        for question in study_tables(study):
            show(*question)
    return result
