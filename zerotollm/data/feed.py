"""What a training loop reads: batches for one objective, whatever the corpus and its shape.

likelihood        a decoder predicts every next token of a text; an encoder-decoder the target of a pair
span_corruption   an encoder-decoder writes what is hidden of a text (T5, arXiv:1910.10683, section 3.1.4)
prefix_lm         an encoder-decoder writes how a text goes on (the same, section 3.2.1)
completion        a decoder writes the completion of a prompt, the answers in a conversation, or the target of a pair
label             a head of its own tells which of a few labels a text has
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from zerotollm.data.batches import Batch, evaluation_batches, training_batches
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.corpora import open_corpus
from zerotollm.data.denoising import SENTINELS, Denoising, prefix_lm, span_corruption
from zerotollm.data.example_tokens import example_batch, prepare_examples
from zerotollm.data.pair_batches import (
    Plan,
    first_pairs,
    pair_evaluation_batches,
    pair_training_batches,
    plan,
)
from zerotollm.data.pair_tokens import prepare_pairs
from zerotollm.data.sharded_tokens import LARGE, prepare_in_shards
from zerotollm.data.tokenizer import AnyTokenizer, Tokenizer
from zerotollm.data.tokens import TokenizedSplit, prepare
from zerotollm.errors import UsageError

Shapes = dict[str, tuple[tuple[int, int], type]]
"""Of a batch: name to shape and type."""


@dataclass(frozen=True)
class Feed:
    """Batches, and what they are made of."""

    corpus: str
    tokenizer: AnyTokenizer
    vocab_size: int
    """ids that occur: the tokenizer's, and sentinels"""
    training: Callable[..., Sequence[Batch]]
    """`training(seed=, process_index=, process_count=)[step]` for any step"""
    evaluation: Callable[[str], Sequence[Batch]]
    """all batches of a split, in order. Raises UsageError where it holds nothing"""
    training_shapes: tuple[Shapes, ...]
    """every shape that a training batch may have"""
    evaluation_shapes: tuple[Shapes, ...]
    num_bytes: dict[str, int]
    """of each split: UTF-8 bytes of the text that is to be predicted"""
    tokens: int
    """training tokens that are to be predicted in one epoch"""
    tokens_per_step: float
    """of them in a step, on average"""
    evaluation_tokens: int
    """in the validation split"""
    fingerprint: list[int]
    """changes with the training text; of a large one only the first 32 million tokens are read"""
    dropped: str
    """what of the corpus is not used, in words; empty where that is nothing"""
    old: "Feed | None" = None
    """of `data.old`"""
    labels: tuple[str, ...] = ()
    """what `targets` number, where these are labels and not tokens; every byte is then a label"""
    cut: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """of each split of texts to label: how many are longer than `data.context`, and how many of their tokens are not
    read"""


def open_feed(
    data: DataConfig,
    tokenizer: TokenizerConfig | AnyTokenizer,
    *,
    objective: str = "likelihood",
    pairs: bool = False,
    micro_batches: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Feed:
    """Prepares the corpus, with a tokenizer that it trains or gets, and says how it is read; `pairs`: for an encoder
    and a decoder. A large text is prepared in parts: `progress(done, of)` is called after each.

    Raises UsageError where the corpus cannot be had or leaves nothing to validate with, RunError where the data
    directory cannot be written.
    """
    if objective in EXAMPLES:
        feed = _example_feed(data, tokenizer, objective, micro_batches)
    elif not pairs:
        feed = _text_feed(data, tokenizer, micro_batches, progress)
        if data.old:
            feed = _with_old(data, feed, micro_batches)
    elif objective == "likelihood":
        feed = _pair_feed(data, tokenizer, micro_batches)
    else:
        feed = _denoising_feed(data, tokenizer, objective, micro_batches)
    if not feed.evaluation_tokens:
        raise UsageError(f"{data.corpus} leaves no text to validate on: raise data.validation_fraction")
    return feed


EXAMPLES = ("completion", "label")
"""Objectives of which only a part of each text is learned."""


def sentinels(objective: str) -> int:
    """Ids that an objective needs after the tokenizer's own."""
    return SENTINELS if objective in ("span_corruption", "prefix_lm") else 0


def evaluation_rows(micro_batch_size: int) -> int:
    """Windows in an evaluation batch: four micro-batches, since no activation is kept for a backward pass."""
    return 4 * micro_batch_size


def _text_feed(
    data: DataConfig,
    tokenizer: TokenizerConfig | AnyTokenizer,
    micro_batches: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Feed:
    corpus = open_corpus(data)
    if len(corpus.splits["train"]) >= LARGE:
        prepare_in_shards(data, tokenizer, progress=progress, corpus=corpus)
    prepared = prepare(data, tokenizer, corpus)
    train, validation = prepared.splits["train"], prepared.splits["validation"]
    rows = evaluation_rows(data.batch_size // micro_batches)

    def shapes(rows: int) -> tuple[Shapes, ...]:
        types = {"inputs": np.int32, "targets": np.int32, "segments": np.int32, "weights": np.float32}
        return ({name: ((rows, data.context), kind) for name, kind in types.items()},)

    def evaluation(split: str) -> Sequence[Batch]:
        return evaluation_batches(prepared.splits[split], context=data.context, batch_size=rows)

    return Feed(
        corpus=prepared.corpus,
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.tokenizer.vocab_size,
        training=partial(training_batches, train, context=data.context, batch_size=data.batch_size),
        evaluation=evaluation,
        training_shapes=shapes(data.batch_size),
        evaluation_shapes=shapes(rows),
        num_bytes={name: split.num_bytes for name, split in prepared.splits.items()},
        tokens=len(train.tokens_N),
        tokens_per_step=data.batch_size * data.context,
        evaluation_tokens=len(validation.tokens_N) if len(validation.tokens_N) > 1 else 0,
        fingerprint=_fingerprint(train),
        dropped="",
    )


def _with_old(data: DataConfig, feed: Feed, micro_batches: int) -> Feed:
    old = _text_feed(replace(data, corpus=data.old), feed.tokenizer, micro_batches)
    if not old.evaluation_tokens:
        raise UsageError(f"{data.old} leaves no text to validate on: raise data.validation_fraction")

    def training(**seed: int) -> Sequence[Batch]:
        return Replayed(feed.training(**seed), old.training(**seed), Fraction(str(data.replay)))

    return replace(feed, training=training, old=old)


@dataclass(frozen=True)
class Replayed:
    """Batches of a new text, a share of them replaced by those of an old one, evenly and each in its own order."""

    new: Sequence[Batch]
    old: Sequence[Batch]
    share: Fraction

    def __len__(self) -> int:
        return len(self.new)

    def __getitem__(self, step: int) -> Batch:
        before = int(step * self.share)
        return self.old[before] if int((step + 1) * self.share) > before else self.new[step - before]


@dataclass(frozen=True)
class Staged:
    """Batches of one kind in the first steps, then of another from its own beginning."""

    first: Sequence[Batch]
    then: Sequence[Batch]
    steps: int
    """of the first kind"""

    def __len__(self) -> int:
        return len(self.then)

    def __getitem__(self, step: int) -> Batch:
        return self.first[step] if step < self.steps else self.then[step - self.steps]


def _pair_feed(data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, micro_batches: int) -> Feed:
    prepared = prepare_pairs(data, tokenizer)
    plans = {
        name: plan(
            split,
            context=data.context,
            batch_size=data.batch_size,
            buckets=data.buckets,
            rows_multiple=micro_batches,
        )
        for name, split in prepared.splits.items()
    }
    train = prepared.splits["train"]

    def training(**seed: int) -> Sequence[Batch]:
        batches = pair_training_batches(train, plans["train"], **seed)
        if not data.extra_steps:
            return batches
        own = pair_training_batches(train, first_pairs(plans["train"], prepared.own), **seed)
        return Staged(batches, own, data.extra_steps)

    def evaluation(split: str) -> Sequence[Batch]:
        if not sum(map(len, plans[split].members)):
            raise UsageError(
                f"{data.corpus} has no {split} pairs of at most data.context {data.context} tokens"
            )
        return pair_evaluation_batches(prepared.splits[split], plans[split])

    def tokens(name: str) -> int:
        used = [prepared.splits[name].side_lengths[members, 1].sum() for members in plans[name].members]
        return int(sum(used))

    return Feed(
        corpus=prepared.corpus,
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.tokenizer.vocab_size,
        training=training,
        evaluation=evaluation,
        training_shapes=_pair_shapes([plans["train"]]),
        evaluation_shapes=_pair_shapes([plans["validation"]]),
        num_bytes={
            name: sum(int(split.target_bytes_N[members].sum()) for members in plans[name].members)
            for name, split in prepared.splits.items()
        },
        tokens=tokens("train"),
        tokens_per_step=tokens("train") / max(1, plans["train"].batches),
        evaluation_tokens=tokens("validation"),
        fingerprint=[*_fingerprint(train.sources), *_fingerprint(train.targets)],
        dropped=_dropped(prepared.dropped, plans, data.context),
    )


def _example_feed(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, objective: str, micro_batches: int
) -> Feed:
    prepared = prepare_examples(data, tokenizer, objective)
    size = {"context": data.context, "batch_size": data.batch_size, "buckets": data.buckets}
    plans = {
        name: plan(split, **size, rows_multiple=micro_batches) for name, split in prepared.splits.items()
    }
    train = prepared.splits["train"]

    def evaluation(split: str) -> Sequence[Batch]:
        if not sum(map(len, plans[split].members)):
            raise UsageError(
                f"{data.corpus} has no {split} examples of at most data.context {data.context} tokens"
            )
        return pair_evaluation_batches(prepared.splits[split], plans[split], example_batch)

    def shapes(layout: Plan) -> tuple[Shapes, ...]:
        types = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        return tuple({n: ((b.rows, b.width), kind) for n, kind in types.items()} for b in layout.buckets)

    def used(name: str) -> np.ndarray:
        return np.concatenate(plans[name].members)

    tokens = {name: int(split.num_learned[used(name)].sum()) for name, split in prepared.splits.items()}
    return Feed(
        corpus=prepared.corpus,
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.tokenizer.vocab_size,
        training=partial(pair_training_batches, train, plans["train"], make=example_batch),
        evaluation=evaluation,
        training_shapes=shapes(plans["train"]),
        evaluation_shapes=shapes(plans["validation"]),
        num_bytes={name: int(split.bytes_E[used(name)].sum()) for name, split in prepared.splits.items()},
        tokens=tokens["train"],
        tokens_per_step=tokens["train"] / max(1, plans["train"].batches),
        evaluation_tokens=tokens["validation"],
        fingerprint=[len(train.tokens_N), len(train), zlib.crc32(train.tokens_N[: 2**25])],
        dropped=_dropped(prepared.dropped, plans, data.context),
        labels=prepared.labels,
        cut={name: split.num_cut for name, split in prepared.splits.items()},
    )


def _denoising_feed(
    data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, objective: str, micro_batches: int
) -> Feed:
    text = _text_feed(data, tokenizer, micro_batches)
    if not isinstance(text.tokenizer, Tokenizer):
        raise UsageError(
            f"train.objective {objective} takes a tokenizer of ours: an imported one has no sentinels"
        )
    first = text.vocab_size
    kinds = {"span_corruption": partial(span_corruption, first), "prefix_lm": prefix_lm}
    corrupt = kinds[objective](data.context)

    def training(seed: int, **processes: int) -> Sequence[Batch]:
        return Denoising(text.training(seed=seed, **processes), corrupt, seed)

    def evaluation(split: str) -> Sequence[Batch]:
        return Denoising(text.evaluation(split), corrupt, 0)

    def shapes(text_shapes: tuple[Shapes, ...]) -> tuple[Shapes, ...]:
        (rows, width), kind = text_shapes[0]["inputs"]
        windows = [{"inputs": np.full((rows, width), Tokenizer.unk_id, kind)}]
        batch = Denoising(windows, corrupt, 0)[0]
        return ({name: (array.shape, array.dtype.type) for name, array in batch.items()},)

    share = (sum(text_target(corrupt, data.context)) / 16) / data.context
    return Feed(
        corpus=text.corpus,
        tokenizer=text.tokenizer,
        vocab_size=first + sentinels(objective),
        training=training,
        evaluation=evaluation,
        training_shapes=shapes(text.training_shapes),
        evaluation_shapes=shapes(text.evaluation_shapes),
        num_bytes=text.num_bytes,
        tokens=text.tokens,
        tokens_per_step=text.tokens_per_step,
        evaluation_tokens=math.ceil(share * text.evaluation_tokens),
        fingerprint=text.fingerprint,
        dropped="",
    )


def text_target(corrupt: Any, context: int) -> list[int]:
    """Lengths of 16 targets."""
    window = np.full(context, Tokenizer.unk_id, np.int32)
    return [int((corrupt(np.random.default_rng(i), window)[1] != Tokenizer.pad_id).sum()) for i in range(16)]


def _pair_shapes(plans: list[Plan]) -> tuple[Shapes, ...]:
    types = {"sources": np.int32, "inputs": np.int32, "targets": np.int32, "weights": np.float32}
    sizes = {(b.rows, b.width): None for plan in plans for b in plan.buckets}
    return tuple({name: (size, kind) for name, kind in types.items()} for size in sizes)


def _dropped(reasons: dict[str, dict[str, int]], plans: dict[str, Plan], context: int) -> str:
    counts: dict[str, int] = {}
    for name, layout in plans.items():
        for reason, number in (reasons[name] | {f"longer than {context} tokens": layout.too_long}).items():
            counts[reason] = counts.get(reason, 0) + number
    return "; ".join(f"{number:,}: {reason}" for reason, number in counts.items() if number)


def _fingerprint(split: TokenizedSplit) -> list[int]:
    return [len(split.tokens_N), split.num_bytes, zlib.crc32(split.tokens_N[: 2**25])]
