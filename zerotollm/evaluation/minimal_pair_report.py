"""evaluate --judge: which of several texts a model finds likelier, over a file of questions or a folder of files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from rich.table import Table

from zerotollm.console import Console
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.evaluation.blimp import MODELS, PUBLISHED
from zerotollm.evaluation.likelihood import (
    Accuracy,
    accuracy_by_group,
    question_log_probabilities,
    read_question_files,
    require_language_model,
)
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically
from zerotollm.model.build import Params
from zerotollm.model.config import TransformerConfig
from zerotollm.run_directory import read_json
from zerotollm.types import Json


class SavedModel(Protocol):
    """A checkpoint of a run directory."""

    @property
    def params(self) -> Params: ...
    @property
    def tokenizer(self) -> AnyTokenizer: ...
    @property
    def model_config(self) -> TransformerConfig: ...
    @property
    def experiment(self) -> Experiment: ...
    @property
    def path(self) -> Path: ...
    @property
    def step(self) -> int: ...


def evaluate_minimal_pairs(run: SavedModel, path: Path, checkpoint: str) -> Json:
    """Show accuracies with intervals, save them in `evaluation-judge.json` under the path, and return them.

    A folder of files is summarized by phenomenon, beside the published accuracies of BLiMP's; the result then also has
    "paradigms". Raises UsageError for a model that does not continue texts, for a path without questions and, naming
    the line, for an unusable question.
    """
    require_language_model(run.experiment, run.path)
    questions = read_question_files(path)
    with Console().status("scoring") as status:
        log_p = question_log_probabilities(
            run.params,
            run.model_config,
            run.tokenizer,
            questions,
            lambda n, of: status.update(f"scored {n:,} of {of:,} texts"),
        )
    accuracies = accuracy_by_group(questions, log_p)
    result = {"judge": str(path), "checkpoint": checkpoint, "step": run.step}
    if path.is_dir():
        result |= {"paradigms": {group: accuracy._asdict() for group, accuracy in accuracies.items()}}
        phenomena = [question._replace(group=question.phenomenon or question.group) for question in questions]
        accuracies = accuracy_by_group(phenomena, log_p)
    result |= {"groups": {group: accuracy._asdict() for group, accuracy in accuracies.items()}}
    file = run.path / "evaluation-judge.json"
    saved = read_json(file, dict, "remove it, and evaluate again") if file.exists() else {}
    saved[str(path.resolve())] = result
    write_atomically(file, json.dumps(saved, indent=2, allow_nan=False) + "\n")
    console = Console()
    console.print(_table(accuracies))
    if equal := accuracies["all"].equal:
        console.print(f"{equal:,} of the questions hold the right text twice and count as wrong")
    return result


def _table(accuracies: Mapping[str, Accuracy]) -> Table:
    """Return the accuracies as a table; see `_published_table` for BLiMP's phenomena."""
    if accuracies.keys() >= PUBLISHED.keys():
        return _published_table(accuracies)
    heads = ("", "right", "95 % interval", "right per byte", "chance", "questions")
    table = Table(*heads, box=None, pad_edge=False)
    for group, accuracy in accuracies.items():
        table.add_row(
            group,
            f"{_percent(accuracy.right / accuracy.questions)} %",
            _interval(accuracy),
            f"{_percent(accuracy.right_per_byte / accuracy.questions)} %",
            f"{_percent(accuracy.chance)} %",
            f"{accuracy.questions:,}",
        )
    return table


def _published_table(accuracies: Mapping[str, Accuracy]) -> Table:
    """Return the accuracies beside those of other models, which leave no room for the other columns."""
    pairs, chance = accuracies["all"].questions, accuracies["all"].chance
    caption = (
        f"% of {pairs:,} pairs, chance {_percent(chance)}; the other models: arXiv:1912.00582, table 3, where T-XL is "
        "Transformer-XL"
    )
    heads = ("", "right", "95 % interval", *MODELS)
    table = Table(*heads, box=None, pad_edge=False, caption=caption, caption_justify="left")
    for group, accuracy in accuracies.items():
        right = _percent(accuracy.right / accuracy.questions)
        table.add_row(group, right, _interval(accuracy), *map(_percent, PUBLISHED.get(group, ())))
    return table


def _interval(accuracy: Accuracy) -> str:
    return f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
