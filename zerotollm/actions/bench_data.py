"""bench-data: how fast text becomes tokens, and tokens become batches."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment

TEXT = 4_000_000
"""Characters tokenized in a round, in whole documents."""
ROUNDS = 5
"""The fastest counts: others show what else the machine was doing."""
SECONDS = 1.0
"""A round of batches."""


def bench_data(experiment: Experiment, run_dir: Path) -> dict[str, Any]:
    """Measures both with the experiment's own data, and shows a table. Leaves `run_dir` alone.

    Returns `tokenizer_mb_per_second` (UTF-8 megabytes, all cores), `sentencepiece_mb_per_second` (the same
    documents given to SentencePiece itself, in turn with ours), `tokenizer_time_ratio` (our time over
    SentencePiece's) and `batch_tokens_per_second` (`dataset[step]`, one thread).
    """
    if experiment.model.architecture != "decoder":
        raise UsageError(
            "bench-data measures the text of decoders, and this experiment has an encoder too: take base perhaps"
        )
    # Imported here: the command line reads the name of this action without waiting.
    from rich.table import Table
    from sentencepiece import SentencePieceProcessor

    from zerotollm.console import Console
    from zerotollm.data.batches.windows import training_batches
    from zerotollm.data.sources.corpora import open_corpus
    from zerotollm.data.tokens.text import prepare

    shape = experiment.data
    data = prepare(shape, experiment.tokenizer)
    texts = _some_texts(open_corpus(shape).splits["train"])
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sentencepiece = SentencePieceProcessor(model_proto=data.tokenizer.model)
    ours, theirs = _fastest(
        lambda: data.tokenizer.encode_batch(texts), lambda: sentencepiece.encode(texts, num_threads=-1)
    )
    dataset = training_batches(
        data.splits["train"],
        context=shape.context,
        batch_size=shape.batch_size,
        seed=experiment.train.seed,
    )
    result = {
        "tokenizer_mb_per_second": megabytes / ours,
        "sentencepiece_mb_per_second": megabytes / theirs,
        "tokenizer_time_ratio": ours / theirs,
        "batch_tokens_per_second": _batches_per_second(dataset) * shape.batch_size * shape.context,
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("text", f"{megabytes:.1f} MB of {shape.corpus}")
    table.add_row("vocabulary", f"{data.tokenizer.vocab_size:,} tokens, {data.tokenizer.kind}")
    table.add_row("tokenization", f"{megabytes / ours:.1f} MB/s")
    table.add_row(
        "SentencePiece itself", f"{megabytes / theirs:.1f} MB/s; ours takes {ours / theirs:.2f} x its time"
    )
    table.add_row(
        "batches",
        f"{result['batch_tokens_per_second']:,.0f} tokens/s, {shape.batch_size} windows of {shape.context}",
    )
    Console().print(table, highlight=False)
    return result


def _some_texts(documents) -> list[str]:
    """Whole documents from the first on, `TEXT` characters or a little more."""
    texts, size = [], 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)
        if size >= TEXT:
            break
    return texts


def _fastest(*functions: Callable[[], Any]) -> list[float]:
    """Seconds of the fastest of `ROUNDS` calls of each, called in turn."""
    seconds = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, taken in zip(functions, seconds, strict=True):
            begun = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begun)
    return [min(taken) for taken in seconds]


def _batches_per_second(dataset) -> float:
    """Batches of the fastest of `ROUNDS` rounds."""
    best = step = 0
    for _ in range(ROUNDS):
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < SECONDS:
            dataset[step]
            count, step = count + 1, step + 1
        best = max(best, count / (time.perf_counter() - begun))
    return best
