"""explain: measure what a trained model does with one text, and show the answers on the terminal."""

import json
from dataclasses import replace
from pathlib import Path

from zerotollm.actions.config import ExplainOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment
from zerotollm.explain.explanation import to_json
from zerotollm.explain.render.markdown import questions_markdown
from zerotollm.explain.render.questions import UNITS
from zerotollm.explain.render.terminal import Shown, question_tables
from zerotollm.explainable_run import load
from zerotollm.host.atomic_files import write_atomically
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.studies.markdown_page import read_page, with_table, write_tables
from zerotollm.types import Json

NAME = "explain.json"


def explain(experiment: Experiment, run_dir: Path, options: ExplainOptions) -> Json:
    """Show the answers about one text, and with `whole_run` those about the run, as tables with a sentence each.

    Returns the numbers without long arrays, and writes them to `explain.json` in the run directory. Raises UsageError
    if there is no text or no checkpoint, if `judge` comes without `whole_run`, or if the page `options.into` has no
    place for the table.
    """
    if options.judge and not options.whole_run:
        raise UsageError("--judge reads the checkpoints of a run: add --whole-run True")
    page = Path(options.into)
    if options.into:  # fail before the measurements, which take a while
        with_table(read_page(page), "questions", "", page)
    cache_compiled_programs(experiment.data)
    run = replace(load(run_dir, options.checkpoint), experiment=experiment)
    explanation = run.explain(options.text)
    result = {"step": run.step, "text": options.text, "explanation": to_json(explanation)}
    _write(run_dir, result)
    console = Console()
    console.print(f"Brackets are 95 % intervals. {UNITS}", highlight=False)
    _show(console, question_tables(explanation))
    run_explanation = None
    if options.whole_run:
        run_explanation = run.study(options.text, judge=options.judge)
        result["study"] = to_json(run_explanation)
        _write(run_dir, result)
    if options.into:
        table = questions_markdown(run.step, explanation, run_explanation)
        write_tables(page, {"questions": table})
    if run_explanation:
        _show(console, question_tables(run_explanation))
    return result


def _write(run_dir: Path, result: Json) -> None:
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(run_dir / NAME, text + "\n")


def _show(console: Console, questions: list[tuple[str, Shown]]) -> None:
    for title, items in questions:
        console.print(f"\n{title}", style="bold")
        above = ""
        for item in items:
            # A line that ends with a colon belongs to the table below it.
            console.print(*([] if above.endswith(":") else [""]), item, sep="\n")
            above = item if isinstance(item, str) else ""
