"""bench-data: the throughput of the tokenizer and of the batches."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from time import perf_counter

from rich.table import Table
from sentencepiece import SentencePieceProcessor

from zerotollm.components import dataset_of
from zerotollm.console import Console
from zerotollm.data.batches.windows import Batch
from zerotollm.data.lazy_sequence import in_groups
from zerotollm.data.sources.documents import training_texts
from zerotollm.data.tokens.text_sources import text_sources
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, task_of

CHARACTERS = 4_000_000  # characters tokenized in a round, in complete documents
ROUNDS = 5  # the fastest round counts: slower ones were disturbed by other processes
SECONDS = 1.0


def bench_data(experiment: Experiment, run_dir: Path) -> dict[str, float]:
    """Measure both throughputs with the experiment's own data and show a table. `run_dir` is not touched.

    Returns `tokenizer_mb_per_second` (UTF-8 megabytes, all cores), `sentencepiece_mb_per_second` (SentencePiece itself
    on the same documents, in alternating rounds), `tokenizer_time_ratio` (our time divided by SentencePiece's) and
    `batch_tokens_per_second` (`dataset[step]`, one thread).
    """
    if task_of(experiment) in ("translate", "denoise"):
        raise UsageError(
            "bench-data measures text for decoders, and this experiment has an encoder: choose another one, for "
            "example base"
        )
    shape = experiment.data
    feed = dataset_of(experiment)
    sources = text_sources(shape, experiment.tokenizer)
    most = CHARACTERS // len(sources)
    texts = [
        text for source in sources for text in next(in_groups(training_texts(source.corpus, most), len, most))
    ]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sentencepiece = SentencePieceProcessor(model_proto=feed.tokenizer.model)
    ours, theirs = _fastest_seconds(
        lambda: feed.tokenizer.encode_batch(texts), lambda: sentencepiece.encode(texts, num_threads=-1)
    )
    batches = feed.training(seed=experiment.train.seed)
    tokens_per_second = _batches_per_second(batches) * shape.batch_size * shape.context
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in (
        ("text", f"{megabytes:.1f} MB of {feed.corpus}"),
        ("vocabulary", f"{feed.tokenizer.vocab_size:,} tokens, {feed.tokenizer.kind}"),
        ("tokenizer", f"{megabytes / ours:.1f} MB/s"),
        ("SentencePiece itself", f"{megabytes / theirs:.1f} MB/s; ours takes {ours / theirs:.2f} x its time"),
        ("batches", f"{tokens_per_second:,.0f} tokens/s, {shape.batch_size} windows of {shape.context}"),
    ):
        table.add_row(*row)
    Console().print(table)
    return {
        "tokenizer_mb_per_second": megabytes / ours,
        "sentencepiece_mb_per_second": megabytes / theirs,
        "tokenizer_time_ratio": ours / theirs,
        "batch_tokens_per_second": tokens_per_second,
    }


def _fastest_seconds(*functions: Callable[[], object]) -> list[float]:
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, measured in zip(functions, seconds, strict=True):
            start = perf_counter()
            function()
            measured.append(perf_counter() - start)
    return list(map(min, seconds))


def _batches_per_second(batches: Sequence[Batch]) -> float:
    rates, steps = [], count()
    for _ in range(ROUNDS):
        number, start = 0, perf_counter()
        while (seconds := perf_counter() - start) < SECONDS:
            batches[next(steps)]
            number += 1
        rates.append(number / seconds)
    return max(rates)
