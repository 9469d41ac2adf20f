"""evaluate: loss and bits per byte of a trained model over a whole split, kept in the run directory."""

import json
from pathlib import Path
from typing import Any

from zerotollm.actions import EvaluateOptions
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.files import write_atomically


def evaluate(experiment: Experiment, run_dir: Path, options: EvaluateOptions) -> dict[str, Any]:
    """Measures one checkpoint, shows the numbers, and writes them to `evaluation-SPLIT.json`.

    Returns `split`, `checkpoint`, `step` and what `zerotollm.evaluation.loss.evaluate_split` does. Raises
    UsageError where the run has no checkpoint or the corpus no such split, and RunError where the corpus is
    not the one that the model was trained on.
    """
    # Imported here: the command line asks this package for its options only.
    from rich.console import Console
    from rich.table import Table

    from zerotollm.data.tokens import prepare
    from zerotollm.evaluation.loss import evaluate_split, evaluation_rows
    from zerotollm.run import cache_compiled_programs, load
    from zerotollm.training.step import make_eval_step

    shape = experiment.data
    run = load(run_dir, options.checkpoint)
    cache_compiled_programs(shape)
    data = prepare(shape, experiment.tokenizer)
    if data.tokenizer != run.tokenizer:
        raise RunError(
            f"the text of {shape.corpus} has changed since {run_dir} was trained, and with it the tokenizer: "
            "bring the text back, or train anew with another --run-dir"
        )
    split = data.splits.get(options.split)
    if split is None or not len(split.tokens_N):
        raise UsageError(
            f"{shape.corpus} has no {options.split} documents: see data.{options.split}_fraction"
        )

    measured = evaluate_split(
        make_eval_step(run.model_config, masked=shape.document_mask, compute=experiment.compute),
        run.params,
        split,
        context=shape.context,
        batch_size=evaluation_rows(shape.batch_size // experiment.train.micro_batches),
    )
    result = {"split": options.split, "checkpoint": options.checkpoint, "step": run.step} | measured
    write_atomically(run_dir / f"evaluation-{options.split}.json", json.dumps(result, indent=2) + "\n")

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("split", f"{options.split} of {shape.corpus}")
    table.add_row("checkpoint", f"{options.checkpoint}, step {run.step:,}")
    table.add_row("loss", f"{measured['loss']:.4f} nats per token, over {measured['tokens']:,} tokens")
    table.add_row("bits per byte", f"{measured['bpb']:.4f}, over {measured['bytes']:,} bytes")
    Console().print(table, highlight=False)
    return result
