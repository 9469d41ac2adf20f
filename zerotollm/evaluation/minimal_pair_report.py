"""evaluate --judge: which of several texts a model finds likelier, over a file of questions."""

import json
from pathlib import Path
from typing import Protocol

from rich.table import Table

from zerotollm.console import Console
from zerotollm.data.sources.lines import read_lines
from zerotollm.data.tokens.sentencepiece import AnyTokenizer
from zerotollm.decoding.text import encode_prompt
from zerotollm.errors import UsageError
from zerotollm.evaluation.likelihood import (
    accuracy_by_group,
    log_likelihoods,
    read_questions,
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
    """Show accuracies with intervals, save them in `evaluation-judge.json` under the file's path, and return them.

    Raises UsageError for a model that does not continue texts and, naming the line, for an unusable question.
    """
    require_language_model(run.experiment, run.path)
    if not path.is_file():
        raise UsageError(f"{path} is no file: give --judge a .jsonl")
    questions = read_questions(path, read_lines(path))
    most, tokenizer = run.model_config.max_length + 1, run.tokenizer
    ids = [encode_prompt(tokenizer, text, most) for question in questions for text in question.texts]
    console = Console()
    with console.status("scoring") as status:
        scores = log_likelihoods(
            run.params,
            run.model_config,
            [(ids_N, len(ids_N) - 1) for ids_N in ids],
            num_tokens=tokenizer.vocab_size,
            done=lambda n: status.update(f"scored {n:,} of {len(ids):,} texts"),
        )
    remaining = iter(scores)
    log_p = [[next(remaining).log_p for _ in question.texts] for question in questions]
    accuracies = accuracy_by_group(questions, log_p)
    heads = ("", "right", "95 % interval", "right per byte", "chance", "questions")
    table = Table(*heads, box=None, pad_edge=False)
    for group, accuracy in accuracies.items():
        table.add_row(
            group,
            f"{100 * accuracy.right / accuracy.questions:.1f} %",
            f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}",
            f"{100 * accuracy.right_per_byte / accuracy.questions:.1f} %",
            f"{100 * accuracy.chance:.1f} %",
            f"{accuracy.questions:,}",
        )
    result = {"judge": str(path), "checkpoint": checkpoint, "step": run.step}
    result |= {"groups": {group: accuracy._asdict() for group, accuracy in accuracies.items()}}
    file = run.path / "evaluation-judge.json"
    saved = read_json(file, dict, "remove it, and evaluate again") if file.exists() else {}
    saved[str(path.resolve())] = result
    write_atomically(file, json.dumps(saved, indent=2, allow_nan=False) + "\n")
    console.print(table)
    if equal := accuracies["all"].equal:
        console.print(f"{equal:,} of the questions hold the right text twice and count as wrong")
    return result
