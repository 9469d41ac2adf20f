"""evaluate: how well a trained model does on a whole split, written into the run directory."""

import json
from dataclasses import replace
from pathlib import Path

import jax

from zerotollm.actions.config import EvaluateOptions
from zerotollm.components import dataset, dataset_of, label_step_of, training_of
from zerotollm.console import Console
from zerotollm.data.feed import Feed
from zerotollm.errors import RunError, UsageError
from zerotollm.evaluation.classification import predict_batches
from zerotollm.evaluation.label_report import label_report, rows
from zerotollm.evaluation.loss import evaluate_feed
from zerotollm.evaluation.minimal_pair_report import evaluate_minimal_pairs
from zerotollm.evaluation.translation_report import not_read, translate_split
from zerotollm.experiment import Experiment, continues, translates
from zerotollm.host.atomic_files import write_atomically
from zerotollm.run import Run, load
from zerotollm.session.compilation_cache import cache_compiled_programs
from zerotollm.session.devices import reading_on_mesh
from zerotollm.session.progress import two_columns
from zerotollm.training.metrics import OF_SOURCE
from zerotollm.types import Json
from zerotollm.validation import validate


def evaluate(experiment: Experiment, run_dir: Path, options: EvaluateOptions) -> Json:
    """Measure one checkpoint, show the numbers, write them to `evaluation-SPLIT.json` and return them.

    They are `split`, `checkpoint`, `step` and those of `zerotollm.evaluation.loss.evaluate_batches`. A model that
    translates adds `corpus_scores` over all pairs, and its translations are in `translations-SPLIT.tsv`. A model that
    labels texts adds `labels`: see `label_report`. With `judge` only minimal pairs are measured, into another file.
    Numbers of another `corpus` are returned and not written. Raises UsageError for a run without a checkpoint or a
    corpus without the split, RunError for a text that has changed since training.
    """
    with reading_on_mesh(experiment) as placement:
        run = load(run_dir, options.checkpoint, placement.mesh)
        cache_compiled_programs(experiment.data)
        if options.judge:
            return evaluate_minimal_pairs(run, Path(options.judge), options.checkpoint)
        if options.corpus:
            experiment = _reading(experiment, options.corpus)
            feed = dataset(experiment, tokenizer=run.tokenizer)
        else:
            feed = _feed_of(experiment, run)
        split = options.split
        training = training_of(replace(experiment, model=run.model_config), feed.tokenizer.pad_id)
        measured = evaluate_feed(jax.jit(training.eval_step), run.params, feed, split, placement)
        result: Json = {"split": split, "checkpoint": options.checkpoint, "step": run.step}
        result |= measured
        console, kind = Console(), "label" if feed.labels else "token"
        lines = [
            ("split", f"{split} of {getattr(experiment.data, split) or experiment.data.corpus}"),
            ("checkpoint", f"{options.checkpoint}, step {run.step:,}"),
            ("loss", f"{measured['loss']:.4f} nats per {kind}, over {measured['tokens']:,} {kind}s"),
        ]
        if feed.labels:
            step = label_step_of(run.trained, run.tokenizer.pad_id)
            predictions = predict_batches(step, run.params, feed.evaluation(split))
            result["labels"] = label_report(experiment, predictions, feed, split, run_dir)
            lines += rows(result["labels"], run_dir, split)
        else:
            bits = f"{measured['bpb']:.4f}, over {measured['bytes']:,} bytes"
            lines.append((f"bits per {feed.byte}", bits))
        lines += [(s.corpus, f"{measured[OF_SOURCE + s.corpus]:.4f} bits per byte") for s in feed.sources]
        if lost := feed.lost.get(split):
            result["lost"] = lost
            lines.append(("lost", f"{100 * lost:.3g} % of the bytes: decoding does not restore them"))
        if translates(experiment):
            file = run_dir / f"translations-{split}.tsv"
            with console.status("translating") as status:
                say = status.update if console.is_terminal else lambda text: None
                scores, text = translate_split(experiment, run.params, run.net, run.tokenizer, split, say)
            write_atomically(file, text)
            result |= scores
            lines += [
                *not_read(scores),
                ("BLEU", f"{scores['bleu']:.2f}, {scores['bleu_signature']}"),
                ("lower-cased", f"{scores['bleu_lowercase']:.2f}, {scores['bleu_lowercase_signature']}"),
                ("chrF", f"{scores['chrf']:.2f}, {scores['chrf_signature']}"),
                ("translations", f"{scores['pairs']:,}, in {file}"),
            ]
        if not options.corpus:
            path = run_dir / f"evaluation-{split}.json"
            write_atomically(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        console.print(two_columns(dict(lines)), highlight=False, soft_wrap=True)
        return result


def _reading(experiment: Experiment, corpus: str) -> Experiment:
    """Return a language model's experiment with another plain text. Raises UsageError for other models and texts."""
    if not continues(experiment):
        raise UsageError(
            f"--corpus: {experiment.name} is no language model, and cannot be evaluated on plain text"
        )
    data = replace(experiment.data, corpus=corpus, validation="", test="", old="", replay=0.0)
    data = replace(data, extra="", extra_steps=0, reverse=False)  # which are of pairs
    other = replace(experiment, data=data, train=replace(experiment.train, objective="likelihood"))
    validate(other)
    return other


def _feed_of(experiment: Experiment, run: Run) -> Feed:
    """Return the batches of the run's text. Raises RunError where that has changed."""
    imported = run.tokenizer.kind == "pretrained"
    feed = dataset_of(experiment, tokenizer=run.tokenizer if imported else None)
    if feed.tokenizer != run.tokenizer:
        raise RunError(
            f"the text of {experiment.data.corpus} has changed since {run.path} was trained, and with it the "
            "tokenizer: bring the text back, or train anew with another --run-dir"
        )
    return feed
