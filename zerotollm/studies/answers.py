"""The files of a study that is one answer."""

import json
from pathlib import Path

from zerotollm import run_directory
from zerotollm.console import Console
from zerotollm.experiment import Experiment, to_json
from zerotollm.explain.answer import Answer
from zerotollm.explain.explanation import to_json as answer_to_json
from zerotollm.explain.render.tables import Table
from zerotollm.explain.render.terminal import rich_table
from zerotollm.host.atomic_files import write_atomically


def write_answer(answer: Answer, table: Table, experiment: Experiment, run_dir: Path, name: str) -> None:
    """Show a table and the sentence, and write NAME.json, .png and .html in a folder NAME of the run directory."""
    folder = run_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "experiment": json.loads(to_json(experiment)),
        "environment": run_directory.environment(),
        "answer": answer_to_json(answer),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / f"{name}.json", text + "\n")
    for suffix in (".png", ".html"):
        answer.save(folder / f"{name}{suffix}")
    console = Console(soft_wrap=True)
    console.print(rich_table(table))
    console.print(answer.sentence(), highlight=False)
    console.print(f"written: {folder}/{name}.json, .png, .html", highlight=False)
