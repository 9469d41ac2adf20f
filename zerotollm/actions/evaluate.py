"""evaluate: how well a trained model does on a whole split, kept in the run directory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from zerotollm.actions.config import EvaluateOptions
from zerotollm.components import dataset_of, label_step_of, training_of
from zerotollm.errors import RunError
from zerotollm.evaluation.classification import predict_batches
from zerotollm.evaluation.label_report import label_report, rows
from zerotollm.evaluation.minimal_pair_report import evaluate_minimal_pairs
from zerotollm.evaluation.translation_report import not_read, translate_split, translates
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.devices import reading_on_mesh


def evaluate(experiment: Experiment, run_dir: Path, options: EvaluateOptions) -> dict[str, Any]:
    """Measures one checkpoint, shows the numbers, and writes them to `evaluation-SPLIT.json`; with `judge` those of
    `zerotollm.evaluation.minimal_pair_report` alone, to a file of its own.

    Returns `split`, `checkpoint`, `step` and what `zerotollm.evaluation.loss.evaluate_batches` does; of a model that
    translates also what `zerotollm.evaluation.bleu.corpus_scores` does, over all pairs of the split, and the
    translations lie beside sources and references in `translations-SPLIT.tsv`; of one that labels texts `labels`, see
    `zerotollm.evaluation.label_report.label_report`. Raises UsageError where the run has no
    checkpoint or the corpus no such split, and RunError where the corpus is not the one that the model was trained on.
    """
    with reading_on_mesh(experiment) as placement:
        return _evaluate(experiment, run_dir, options, placement)


def _evaluate(
    experiment: Experiment, run_dir: Path, options: EvaluateOptions, placement: Any
) -> dict[str, Any]:
    # Imported here: the command line asks this package for its options only.
    from rich.table import Table

    from zerotollm.console import Console
    from zerotollm.evaluation.loss import evaluate_feed
    from zerotollm.run import load

    shape = experiment.data
    run = load(run_dir, options.checkpoint, placement.mesh)
    cache_compiled_programs(shape)
    if options.judge:
        return evaluate_minimal_pairs(run, Path(options.judge), options.checkpoint)
    imported = run.tokenizer.kind == "pretrained"
    feed = dataset_of(experiment, tokenizer=run.tokenizer if imported else None)
    if feed.tokenizer != run.tokenizer:
        raise RunError(
            f"the text of {shape.corpus} has changed since {run_dir} was trained, and with it the tokenizer: "
            "bring the text back, or train anew with another --run-dir"
        )
    console = Console()
    training = training_of(replace(experiment, model=run.model_config), feed.tokenizer.pad_id)
    eval_step = jax.jit(training.eval_step)
    measured = evaluate_feed(eval_step, run.params, feed, options.split, placement)
    result = {"split": options.split, "checkpoint": options.checkpoint, "step": run.step} | measured
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("split", f"{options.split} of {shape.corpus}")
    table.add_row("checkpoint", f"{options.checkpoint}, step {run.step:,}")
    kind = "label" if feed.labels else "token"
    table.add_row("loss", f"{measured['loss']:.4f} nats per {kind}, over {measured['tokens']:,} {kind}s")
    if feed.labels:
        step = label_step_of(run.trained, run.tokenizer.pad_id)
        predictions = predict_batches(step, run.params, feed.evaluation(options.split))
        result["labels"] = label_report(experiment, predictions, feed, options.split, run_dir)
        for row in rows(result["labels"], run_dir, options.split):
            table.add_row(*row)
    else:
        table.add_row(f"bits per {feed.byte}", f"{measured['bpb']:.4f}, over {measured['bytes']:,} bytes")
    if lost := feed.lost.get(options.split):
        result["lost"] = lost
        table.add_row("lost", f"{100 * lost:.3g} % of the bytes, which the tokenizer does not give back")
    if translates(experiment):
        file = run_dir / f"translations-{options.split}.tsv"
        with console.status("translating") as status:
            say = status.update if console.is_terminal else lambda text: None
            scores, lines = translate_split(
                experiment, run.params, run.net, run.tokenizer, options.split, say
            )
        write_atomically(file, lines)
        result |= scores
        for row in not_read(scores):
            table.add_row(*row)
        table.add_row("BLEU", f"{scores['bleu']:.2f}, {scores['bleu_signature']}")
        table.add_row("chrF", f"{scores['chrf']:.2f}, {scores['chrf_signature']}")
        table.add_row("translations", f"{scores['pairs']:,}, in {file}")
    write_atomically(
        run_dir / f"evaluation-{options.split}.json", json.dumps(result, indent=2, allow_nan=False) + "\n"
    )
    console.print(table, highlight=False, soft_wrap=True)
    return result
