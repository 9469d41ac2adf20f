"""Batches for one training objective, whatever the corpus.

likelihood        a decoder predicts every next token of a text; an encoder-decoder predicts the target of a pair
span_corruption   an encoder-decoder writes the hidden spans of a text (T5, arXiv:1910.10683, section 3.1.4)
prefix_lm         an encoder-decoder continues a text (same paper, section 3.2.1)
completion        a decoder writes the completion of a prompt, the answers in a conversation, or the target of a pair
label             a classification head predicts the label of a text
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from zerotollm.data.batches.buckets import (
    bucket_evaluation_batches,
    bucket_training_batches,
    first_rows,
    plan_buckets,
)
from zerotollm.data.batches.denoising import SENTINELS, denoising_batches, prefix_lm, span_corruption
from zerotollm.data.batches.mixtures import interleaved, replayed, staged
from zerotollm.data.batches.rows import example_batch, pair_batch
from zerotollm.data.batches.windows import (
    Batch,
    evaluation_batches,
    rows_of_process,
    training_batches,
    training_windows,
)
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.lazy_sequence import joined
from zerotollm.data.left_out import check_decodable, check_not_empty, describe_left_out
from zerotollm.data.sources.documents import SPLITS
from zerotollm.data.tokens.cache import Prepared
from zerotollm.data.tokens.examples import TokenizedExamples, prepare_examples
from zerotollm.data.tokens.pairs import TokenizedPairs, prepare_pairs
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer, byte_lengths
from zerotollm.data.tokens.shards import Progress
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.data.tokens.text_sources import prepare_sources, text_sources
from zerotollm.errors import UsageError

Shapes = dict[str, tuple[tuple[int, int], type[np.generic]]]
"""The shape and type of each array of a batch, by name."""

EXAMPLES = ("completion", "label")  # objectives that learn only a part of each text


class TrainingBatches(Protocol):
    """Return the training batches of a seed: `training(seed=0)[step]` for any step."""

    def __call__(self, *, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]: ...


@dataclass(frozen=True)
class Feed:
    """A corpus as batches, with the counts that training reports."""

    corpus: str
    tokenizer: AnyTokenizer
    vocab_size: int  # ids that occur in batches: the tokenizer's, then sentinels
    training: TrainingBatches  # endless; with several processes, the rows of one of them
    evaluation: Callable[[str], Sequence[Batch]]  # a split in order, or UsageError if it is empty
    training_shapes: tuple[Shapes, ...]  # every shape that a batch may have, over all processes
    evaluation_shapes: tuple[Shapes, ...]
    num_bytes: dict[str, int]  # UTF-8 bytes of the text to predict, or their mean, per split
    tokens: int  # tokens to predict in an epoch of training
    tokens_per_step: float  # the same in a training step, on average
    evaluation_tokens: int  # the same in the validation split
    fingerprint: list[int]  # changes with the first 32 million training tokens
    dropped: str  # text that is not used and why, in words; empty if all is used
    old: "Feed | None" = None
    sources: "tuple[Feed, ...]" = ()  # the corpora of a mixture, each with its own validation; empty for one corpus
    share: float = 1.0  # of the training windows of the mixture that this feed is a source of
    labels: tuple[str, ...] = ()  # classes that `targets` number, each of one byte; empty for tokens
    lost: dict[str, float] = field(default_factory=dict)
    """share of a split's bytes that decoding does not return and `num_bytes` omits; only for splits that lose text"""
    byte: str = "byte"
    cut: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """per split of texts to classify: texts longer than `data.context`, and their tokens that are not read"""

    @property
    def evaluation_steps(self) -> float:
        """Operations of one validation, in training steps: the forward pass is a third of a step."""
        return self.evaluation_tokens / self.tokens_per_step / 3


def open_feed(
    data: DataConfig,
    tokenizer: TokenizerConfig | AnyTokenizer,
    *,
    objective: str = "likelihood",
    pairs: bool = False,
    micro_batches: int = 1,
    progress: Progress = lambda done, total: None,
) -> Feed:
    """Prepare the corpus with a given tokenizer, or one trained on it, and return its batches.

    `pairs` selects batches for an encoder and a decoder. `progress(done, total)` is called after each shard of a large
    text. Raises UsageError if the corpus is not available or leaves nothing to validate on.
    """
    if objective in EXAMPLES:
        examples = prepare_examples(data, tokenizer, objective)
        feed = _bucket_feed(data, examples, example_batch, "examples", "inputs", "targets")
        feed = replace(feed, cut={name: split.num_cut for name, split in examples.splits.items()})
    elif not pairs:
        feed = _text_feed(data, tokenizer, micro_batches, progress)
        if data.old:
            feed = _with_old(data, feed, micro_batches)
    elif objective == "likelihood":
        prepared = prepare_pairs(data, tokenizer)
        feed = _bucket_feed(data, prepared, pair_batch, "pairs", "sources", "inputs", "targets")
    else:
        feed = _denoising_feed(data, tokenizer, objective, micro_batches)
    for checked in (*feed.sources, feed, *([feed.old] if feed.old else [])):
        if not checked.evaluation_tokens:
            message = f"{checked.corpus} leaves no text to validate on: raise data.validation_fraction"
            raise UsageError(message)
        for split in ("train", "validation"):
            check_decodable(checked.corpus, split, checked.num_bytes[split])
    return feed


def sentinels(objective: str) -> int:
    """Return the number of ids that an objective adds after the tokenizer's own."""
    return SENTINELS if objective in ("span_corruption", "prefix_lm") else 0


def evaluation_rows(micro_batch_size: int) -> int:
    """Return the windows in an evaluation batch: four micro-batches, as no activation is kept for a backward pass."""
    return 4 * micro_batch_size


def _text_feed(
    data: DataConfig,
    tokenizer: TokenizerConfig | AnyTokenizer,
    micro_batches: int,
    progress: Progress = lambda done, total: None,
) -> Feed:
    sources = text_sources(data, tokenizer)
    prepared = prepare_sources(sources, progress=progress)
    feeds = [
        replace(_source_feed(source.data, tokens, micro_batches), share=float(source.weight))
        for source, tokens in zip(sources, prepared, strict=True)
    ]
    if len(feeds) == 1:
        return feeds[0]
    return _mixture_feed(data, [source.weight for source in sources], prepared, feeds)


def _source_feed(data: DataConfig, prepared: Prepared[TokenizedSplit], micro_batches: int) -> Feed:
    splits, train = prepared.splits, prepared.splits["train"]
    rows = evaluation_rows(data.batch_size // micro_batches)

    def evaluation(split: str) -> Sequence[Batch]:
        if not len(splits[split].document_starts_D):
            raise UsageError(f"{data.corpus} has no {split} documents: raise data.{split}_fraction")
        check_decodable(data.corpus, split, splits[split].num_bytes)
        return evaluation_batches(splits[split], context=data.context, batch_size=rows)

    num_bytes = {name: split.num_bytes for name, split in splits.items()}
    tokens = {name: len(split.tokens_N) for name, split in splits.items()}
    lost = prepared.lost_shares(num_bytes)
    return Feed(
        corpus=prepared.corpus,
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.tokenizer.vocab_size,
        training=partial(training_batches, train, context=data.context, batch_size=data.batch_size),
        evaluation=evaluation,
        training_shapes=(_shapes((data.batch_size, data.context), "inputs", "targets", "segments"),),
        evaluation_shapes=(_shapes((rows, data.context), "inputs", "targets", "segments"),),
        num_bytes=num_bytes,
        tokens=tokens["train"],
        tokens_per_step=data.batch_size * data.context,
        evaluation_tokens=tokens["validation"] if tokens["validation"] > 1 else 0,
        fingerprint=train.fingerprint,
        dropped=describe_left_out({}, lost),
        lost=lost,
        byte=_unit(lost),
    )


def _mixture_feed(
    data: DataConfig, shares: list[Fraction], prepared: list[Prepared[TokenizedSplit]], feeds: list[Feed]
) -> Feed:
    """Return the feed of several corpora: training windows in the given shares, and all held-out text once."""
    splits = [tokens.splits["train"] for tokens in prepared]
    for feed in feeds:
        if feed.tokens <= data.context:
            raise UsageError(
                f"{feed.corpus}, in the mixture {data.corpus}, has {feed.tokens:,} training tokens, and a window needs "
                f"{data.context + 1:,}, one more than data.context: give more text, leave it out, or lower data.context"
            )

    def training(*, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
        rows = rows_of_process(data.batch_size, process_index, process_count)
        windows = [training_windows(split, context=data.context, seed=seed) for split in splits]
        return interleaved(windows, shares, data.batch_size, rows)

    def evaluation(split: str) -> Sequence[Batch]:
        return joined([feed.evaluation(split) for feed in feeds])

    num_bytes = {name: sum(feed.num_bytes[name] for feed in feeds) for name in SPLITS}
    tokens = sum(feed.tokens for feed in feeds)
    # Of training text, the bytes of so many tokens in these shares: training reports bits per byte of what it reads.
    bytes_per_token = sum(feed.share * feed.num_bytes["train"] / feed.tokens for feed in feeds)
    lost = {name: sum(source.counts.lost.get(name, 0) for source in prepared) for name in SPLITS}
    lost = {name: number / (number + num_bytes[name]) for name, number in lost.items() if number}
    return replace(
        feeds[0],
        corpus=data.corpus,
        sources=tuple(feeds),
        share=1.0,
        training=training,
        evaluation=evaluation,
        num_bytes=num_bytes | {"train": round(tokens * bytes_per_token)},
        tokens=tokens,
        evaluation_tokens=sum(feed.evaluation_tokens for feed in feeds),
        fingerprint=[number for feed in feeds for number in feed.fingerprint],
        dropped=describe_left_out({}, lost),
        lost=lost,
        byte=_unit(lost),
    )


def _with_old(data: DataConfig, feed: Feed, micro_batches: int) -> Feed:
    old = _text_feed(replace(data, corpus=data.old), feed.tokenizer, micro_batches)
    if not data.replay:
        return replace(feed, old=old)
    if old.tokens <= data.context:
        raise UsageError(
            f"data.old {data.old} has {old.tokens:,} training tokens, and data.replay needs {data.context + 1:,}, "
            "one more than data.context: give more text or lower data.context"
        )

    def training(**seed: int) -> Sequence[Batch]:
        return replayed(feed.training(**seed), old.training(**seed), Fraction(str(data.replay)))

    return replace(feed, training=training, old=old)


Rows = TypeVar("Rows", TokenizedPairs, TokenizedExamples)


def _bucket_feed(
    data: DataConfig,
    prepared: Prepared[Rows],
    make: Callable[[Rows, np.ndarray, int, int], Batch],
    kind: str,
    *arrays: str,
) -> Feed:
    """Return the feed of pairs or examples; `arrays` are the integer arrays in a batch."""
    splits, train, own = prepared.splits, prepared.splits["train"], prepared.counts.own
    size = {"context": data.context, "batch_size": data.batch_size, "buckets": data.buckets}
    plans = {name: plan_buckets(split.side_lengths, **size) for name, split in splits.items()}
    dropped = {
        name: prepared.counts.dropped[name] | {f"longer than {data.context} tokens": plan.too_long}
        for name, plan in plans.items()
    }

    def evaluation(split: str) -> Sequence[Batch]:
        plan = plans[split]
        check_not_empty(data, split, kind, len(plan.used), plan.too_long, dropped[split])
        return bucket_evaluation_batches(plan, partial(make, splits[split]))

    def training(**seed: int) -> Sequence[Batch]:
        batches = bucket_training_batches(plans["train"], partial(make, train), **seed)
        if own is None or not data.extra_steps:
            return batches
        own_plan = first_rows(plans["train"], own)
        return staged(
            batches, bucket_training_batches(own_plan, partial(make, train), **seed), data.extra_steps
        )

    def shapes(split: str) -> tuple[Shapes, ...]:
        return tuple(_shapes((bucket.rows, bucket.width), *arrays) for bucket in plans[split].buckets)

    for name in ("validation", "train"):
        evaluation(name)
    tokens = {name: int(split.num_predicted[plans[name].used].sum()) for name, split in splits.items()}
    lost = prepared.lost_shares({name: int(split.num_bytes.sum()) for name, split in splits.items()})
    reasons = Counter[str]()
    for counts in dropped.values():
        reasons.update(counts)
    return Feed(
        corpus=prepared.corpus,
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.tokenizer.vocab_size,
        training=training,
        evaluation=evaluation,
        training_shapes=shapes("train"),
        evaluation_shapes=shapes("validation"),
        num_bytes={name: int(split.num_bytes[plans[name].used].sum()) for name, split in splits.items()},
        tokens=tokens["train"],
        tokens_per_step=tokens["train"] / max(1, plans["train"].num_batches),
        evaluation_tokens=tokens["validation"],
        fingerprint=train.fingerprint,
        dropped=describe_left_out(reasons, lost),
        labels=prepared.labels,
        lost=lost,
        byte=_unit(lost),
    )


def _denoising_feed(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, objective: str, micro_batches: int
) -> Feed:
    text = _text_feed(data, tokenizer, micro_batches)
    if not isinstance(text.tokenizer, Tokenizer):
        raise UsageError(
            f"train.objective {objective} needs a tokenizer trained here: an imported one has no sentinels"
        )
    return _denoised(data, text, objective)


def _denoised(data: DataConfig, text: Feed, objective: str) -> Feed:
    """Return the feed of a text whose spans are hidden, and of each source if it is a mixture."""
    if objective == "span_corruption":
        corruption, unit = span_corruption(text.vocab_size, data.context), "hidden byte"
    else:
        corruption, unit = prefix_lm(data.context), "byte after the prefix"
    (rows, _), _ = text.evaluation_shapes[0]["inputs"]

    def training(*, seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
        windows = text.training(seed=seed, process_index=process_index, process_count=process_count)
        first_row = process_index * (data.batch_size // process_count)
        return denoising_batches(windows, corruption, seed, data.batch_size, first_row)

    def evaluation(split: str) -> Sequence[Batch]:
        return denoising_batches(text.evaluation(split), corruption, 0, rows)

    def shapes(rows: int) -> tuple[Shapes, ...]:
        source, target = (rows, corruption.source_length), (rows, corruption.target_length)
        return ({"sources": (source, np.int32)} | _shapes(target, "inputs", "targets"),)

    bytes_V = np.append(byte_lengths(text.tokenizer), np.zeros(SENTINELS, np.int64))
    # Each epoch hides other spans of the training text, so its counts are means.
    tokens = {"train": round(text.tokens / data.context * corruption.mean_target)}
    num_bytes = {"train": round(text.num_bytes["train"] * corruption.mean_text / data.context)}
    for name in SPLITS[1:]:
        tokens[name] = num_bytes[name] = 0
        for batch in evaluation(name) if text.num_bytes[name] else ():
            tokens[name] += int((batch["weights"] > 0).sum())
            num_bytes[name] += int(bytes_V[batch["targets"]].sum())
    return replace(
        text,
        sources=tuple(_denoised(data, source, objective) for source in text.sources),
        vocab_size=text.vocab_size + sentinels(objective),
        training=training,
        evaluation=evaluation,
        training_shapes=shapes(data.batch_size),
        evaluation_shapes=shapes(rows),
        num_bytes=num_bytes,
        byte=unit,
        tokens=tokens["train"],
        tokens_per_step=data.batch_size * corruption.mean_target,
        evaluation_tokens=tokens["validation"],
    )


def _shapes(size: tuple[int, int], *arrays: str) -> Shapes:
    shapes: Shapes = {name: (size, np.int32) for name in arrays}
    return shapes | {"weights": (size, np.float32)}


def _unit(lost: Mapping[str, float]) -> str:
    return "byte that is not lost" if lost else "byte"
