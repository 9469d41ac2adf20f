"""evaluate --judge: which of several texts a model holds likelier, over a file of questions."""

import json
from pathlib import Path
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.host.atomic_files import write_atomically
from zerotollm.run_directory import read_json


def evaluate_judgments(run: Any, path: Path, checkpoint: str) -> dict[str, Any]:
    """Show accuracies with intervals, keep them in `evaluation-judge.json`, by the file's path, and return them.

    Raises UsageError, naming the line, where the file is not what `read_questions` takes or a text does not fit.
    """
    from rich.table import Table

    from zerotollm.console import Console
    from zerotollm.data.sources.lines import read_lines
    from zerotollm.decoding.text import encode_prompt
    from zerotollm.evaluation.likelihood import judge, log_likelihoods, read_questions

    if run.model_config.architecture == "encoder-decoder" or run.model_config.num_classes:
        raise UsageError(
            f"{run.path} holds no model that writes a text on, so that no text is likelier to it"
        )
    if not path.is_file():
        raise UsageError(f"{path} is no file: give --judge a .jsonl")
    questions = read_questions(path, read_lines(path))
    most, tokenizer = run.model_config.max_length + 1, run.tokenizer
    ids = [encode_prompt(tokenizer, text, most) for question in questions for text in question.texts]
    console = Console()
    with console.status("reading") as status:
        scores = log_likelihoods(
            run.params,
            run.model_config,
            [(ids_N, len(ids_N) - 1) for ids_N in ids],
            num_tokens=tokenizer.vocab_size,
            done=lambda n: status.update(f"reading {n:,} of {len(ids):,} texts"),
        )
    left = iter(scores)
    log_p = [[next(left).log_p for _ in question.texts] for question in questions]
    judged = judge(questions, log_p)
    table = Table("", "right", "95 % interval", "by bytes", "chance", "questions", box=None, pad_edge=False)
    for group, found in judged.items():
        table.add_row(
            group,
            f"{100 * found.right / found.questions:.1f} %",
            f"{100 * found.low:.1f} to {100 * found.high:.1f}",
            f"{100 * found.right_per_byte / found.questions:.1f} %",
            f"{100 * found.chance:.1f} %",
            f"{found.questions:,}",
        )
    result = {"judge": str(path), "checkpoint": checkpoint, "step": run.step}
    result |= {"groups": {group: found._asdict() for group, found in judged.items()}}
    kept = run.path / "evaluation-judge.json"
    judgments = read_json(kept, dict, "remove it, and judge again") if kept.exists() else {}
    judgments[str(path.resolve())] = result
    write_atomically(kept, json.dumps(judgments, indent=2, allow_nan=False) + "\n")
    console.print(table)
    if judged["all"].equal:
        console.print(
            f"{judged['all'].equal:,} of the questions hold the right text twice, and count as wrong"
        )
    return result
