"""What a training loop reads: batches for one objective, whatever the corpus and its shape.

likelihood        a decoder predicts every next token of a text; an encoder-decoder the target of a pair
span_corruption   an encoder-decoder writes what is hidden of a text (T5, arXiv:1910.10683, section 3.1.4)
prefix_lm         an encoder-decoder writes how a text goes on (the same, section 3.2.1)
completion        a decoder writes the completion of a prompt, the answers in a conversation, or the target of a pair
label             a head of its own tells which of a few labels a text has
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import numpy as np

from zerotollm.data.batches.buckets import (
    Plan,
    Rows,
    first_pairs,
    pair_evaluation_batches,
    pair_training_batches,
    plan,
)
from zerotollm.data.batches.denoising import SENTINELS, Denoising, prefix_lm, span_corruption
from zerotollm.data.batches.windows import Batch, Replayed, Staged, evaluation_batches, training_batches
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.sources.corpora import open_corpus
from zerotollm.data.sources.documents import SPLITS
from zerotollm.data.tokens.examples import example_batch, prepare_examples
from zerotollm.data.tokens.pairs import prepare_pairs
from zerotollm.data.tokens.sentencepiece import AnyTokenizer, Tokenizer, byte_lengths
from zerotollm.data.tokens.shards import LARGE, prepare_in_shards
from zerotollm.data.tokens.text import TokenizedSplit, prepare
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
    """of each split: UTF-8 bytes of the text that is to be predicted; the mean, where every epoch hides other parts"""
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
    lost: dict[str, float] = field(default_factory=dict)
    """of each split that loses text: share of its bytes that the tokens do not give back, and `num_bytes` has not"""
    byte: str = "byte"
    """what `num_bytes` counts, in words"""
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
        feed = _example_feed(data, tokenizer, objective)
    elif not pairs:
        feed = _text_feed(data, tokenizer, micro_batches, progress)
        if data.old:
            feed = _with_old(data, feed, micro_batches)
    elif objective == "likelihood":
        feed = _pair_feed(data, tokenizer)
    else:
        feed = _denoising_feed(data, tokenizer, objective, micro_batches)
    for part in (feed, feed.old) if feed.old else (feed,):
        if not part.evaluation_tokens:
            raise UsageError(f"{part.corpus} leaves no text to validate on: raise data.validation_fraction")
        for split in SPLITS[:2]:
            if not part.num_bytes[split]:
                raise _all_lost(part.corpus, split)
    return feed


def _all_lost(corpus: str, split: str) -> UsageError:
    return UsageError(
        f"the tokenizer knows no character of the {split} text of {corpus}: take another one, or "
        "tokenizer.byte_fallback"
    )


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
        if not len(prepared.splits[split].document_starts_D):
            raise UsageError(f"{data.corpus} has no {split} documents: see data.{split}_fraction")
        if not prepared.splits[split].num_bytes:
            raise _all_lost(data.corpus, split)
        return evaluation_batches(prepared.splits[split], context=data.context, batch_size=rows)

    lost = _shares(
        {name: split.lost_bytes for name, split in prepared.splits.items()},
        {name: split.num_bytes for name, split in prepared.splits.items()},
    )
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
        dropped=_dropped({}, lost),
        lost=lost,
        byte=KEPT if lost else "byte",
    )


def _with_old(data: DataConfig, feed: Feed, micro_batches: int) -> Feed:
    old = _text_feed(replace(data, corpus=data.old), feed.tokenizer, micro_batches)
    if not data.replay:
        return replace(feed, old=old)
    if old.tokens <= data.context:
        raise UsageError(
            f"data.old {data.old} has {old.tokens:,} training tokens, and data.replay reads windows of "
            f"{data.context:,} tokens and the one after: give more text or lower data.context"
        )

    def training(**seed: int) -> Sequence[Batch]:
        return Replayed(feed.training(**seed), old.training(**seed), Fraction(str(data.replay)))

    return replace(feed, training=training, old=old)


def _pair_feed(data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer) -> Feed:
    prepared = prepare_pairs(data, tokenizer)
    plans = _plans(data, prepared.splits)
    check_left = partial(_check_left, data, "pairs", prepared.dropped, plans)
    for name in ("validation", "train"):
        check_left(name)
    train = prepared.splits["train"]

    def training(**seed: int) -> Sequence[Batch]:
        batches = pair_training_batches(train, plans["train"], **seed)
        if not data.extra_steps:
            return batches
        own = pair_training_batches(train, first_pairs(plans["train"], prepared.own), **seed)
        return Staged(batches, own, data.extra_steps)

    def evaluation(split: str) -> Sequence[Batch]:
        check_left(split)
        return pair_evaluation_batches(prepared.splits[split], plans[split])

    def tokens(name: str) -> int:
        used = [prepared.splits[name].side_lengths[members, 1].sum() for members in plans[name].members]
        return int(sum(used))

    lost = _shares(prepared.lost, {name: s.target_bytes_N.sum() for name, s in prepared.splits.items()})
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
        dropped=_dropped(_reasons(prepared.dropped, plans, data.context), lost),
        lost=lost,
        byte=KEPT if lost else "byte",
    )


def _example_feed(data: DataConfig, tokenizer: TokenizerConfig | AnyTokenizer, objective: str) -> Feed:
    prepared = prepare_examples(data, tokenizer, objective)
    plans = _plans(data, prepared.splits)
    check_left = partial(_check_left, data, "examples", prepared.dropped, plans)
    for name in ("validation", "train"):
        check_left(name)
    train = prepared.splits["train"]

    def evaluation(split: str) -> Sequence[Batch]:
        check_left(split)
        return pair_evaluation_batches(prepared.splits[split], plans[split], example_batch)

    def shapes(layout: Plan) -> tuple[Shapes, ...]:
        types = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        return tuple({n: ((b.rows, b.width), kind) for n, kind in types.items()} for b in layout.buckets)

    def used(name: str) -> np.ndarray:
        return np.concatenate(plans[name].members)

    tokens = {name: int(split.num_learned[used(name)].sum()) for name, split in prepared.splits.items()}
    lost = _shares(prepared.lost, {name: split.bytes_E.sum() for name, split in prepared.splits.items()})
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
        dropped=_dropped(_reasons(prepared.dropped, plans, data.context), lost),
        labels=prepared.labels,
        lost=lost,
        byte=KEPT if lost else "byte",
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
    corruption = kinds[objective](data.context)
    (evaluation_rows, _), _ = text.evaluation_shapes[0]["inputs"]

    def training(seed: int, process_index: int = 0, process_count: int = 1) -> Sequence[Batch]:
        windows = text.training(seed=seed, process_index=process_index, process_count=process_count)
        first_row = process_index * (data.batch_size // process_count)
        return Denoising(windows, corruption, seed, data.batch_size, first_row)

    def evaluation(split: str) -> Sequence[Batch]:
        return Denoising(text.evaluation(split), corruption, 0, evaluation_rows)

    def shapes(rows: int) -> tuple[Shapes, ...]:
        source, target = (rows, corruption.source_length), (rows, corruption.target_length)
        sizes = {"sources": source, "inputs": target, "targets": target}
        return ({name: (size, np.int32) for name, size in sizes.items()} | {"weights": (target, np.float32)},)

    # Sentinels stand for no text.
    bytes_V = np.append(byte_lengths(text.tokenizer), np.zeros(SENTINELS, np.int64))

    def predicted(split: str) -> tuple[int, int]:
        """Tokens of all targets, and the bytes that they stand for."""
        counts = [
            ((batch["weights"] > 0).sum(), bytes_V[batch["targets"]].sum()) for batch in evaluation(split)
        ]
        return int(sum(tokens for tokens, _ in counts)), int(sum(num_bytes for _, num_bytes in counts))

    held_out = {name: predicted(name) if text.num_bytes[name] else (0, 0) for name in SPLITS[1:]}
    # Other parts of the training text are hidden in every epoch: these are means.
    windows = text.tokens / data.context
    training_bytes = round(text.num_bytes["train"] * corruption.mean_text / data.context)
    return replace(
        text,
        vocab_size=first + sentinels(objective),
        training=training,
        evaluation=evaluation,
        training_shapes=shapes(data.batch_size),
        evaluation_shapes=shapes(evaluation_rows),
        num_bytes={"train": training_bytes} | {name: counts[1] for name, counts in held_out.items()},
        byte={"span_corruption": "hidden byte", "prefix_lm": "byte after the prefix"}[objective],
        tokens=round(windows * corruption.mean_target),
        tokens_per_step=data.batch_size * corruption.mean_target,
        evaluation_tokens=held_out["validation"][0],
    )


def _pair_shapes(plans: list[Plan]) -> tuple[Shapes, ...]:
    types = {"sources": np.int32, "inputs": np.int32, "targets": np.int32, "weights": np.float32}
    sizes = {(b.rows, b.width): None for plan in plans for b in plan.buckets}
    return tuple({name: (size, kind) for name, kind in types.items()} for size in sizes)


def _plans(data: DataConfig, splits: Mapping[str, Rows]) -> dict[str, Plan]:
    size = {"context": data.context, "batch_size": data.batch_size, "buckets": data.buckets}
    return {name: plan(split, **size) for name, split in splits.items()}


def _too_long(context: int) -> str:
    return f"longer than {context} tokens"


def _reasons(dropped: dict[str, dict[str, int]], plans: dict[str, Plan], context: int) -> dict[str, int]:
    """How many pairs or examples of all splits are left out, by reason."""
    counts: dict[str, int] = {}
    for name, layout in plans.items():
        for reason, number in (dropped[name] | {_too_long(context): layout.too_long}).items():
            counts[reason] = counts.get(reason, 0) + number
    return counts


def _check_left(
    data: DataConfig, kind: str, dropped: dict[str, dict[str, int]], plans: dict[str, Plan], split: str
) -> None:
    """Raises UsageError where no pair or example of a split is used, and says why."""
    if any(map(len, plans[split].members)):
        return
    too_long, other = plans[split].too_long, sum(dropped[split].values())
    files = {"train": data.corpus, "validation": data.validation, "test": data.test}[split]
    advice = "give more text" if files else f"raise data.{split}_fraction"
    if data.validation and not files:
        advice = "name files for it as data.test"
    corpus = files or data.corpus
    if not too_long + other:
        raise UsageError(f"{corpus} has no {split} {kind}: {advice}")
    if not other:
        which = (
            f"all {too_long:,} {split} {kind} of {corpus} are"
            if too_long > 1
            else f"the only one of the {split} {kind} of {corpus} is"
        )
        raise UsageError(f"{which} {_too_long(data.context)}: raise data.context")
    reasons = _dropped(_reasons({split: dropped[split]}, {split: plans[split]}, data.context), {})
    advice = "look at the files" + (", or raise data.context" if too_long else "")
    raise UsageError(
        f"none of the {too_long + other:,} {split} {kind} of {corpus} is left ({reasons}): {advice}"
    )


KEPT = "byte that is not lost"


def _shares(lost: Mapping[str, int], kept: Mapping[str, int]) -> dict[str, float]:
    """Of each split that loses text: lost bytes as a share of all bytes."""
    return {name: float(number / (number + kept[name])) for name, number in lost.items() if number}


def _dropped(reasons: dict[str, int], lost: dict[str, float]) -> str:
    said = [f"{number:,}: {reason}" for reason, number in reasons.items() if number]
    if lost:
        shares = ", ".join(f"{100 * share:.3g} % of the {name} bytes" for name, share in lost.items())
        said.append(
            f"{shares}: characters that the vocabulary does not hold, or that normalization shortens "
            "(tokenizer.byte_fallback, tokenizer.normalization)"
        )
    return "; ".join(said)


def _fingerprint(split: TokenizedSplit) -> list[int]:
    return [len(split.tokens_N), split.num_bytes + split.lost_bytes, zlib.crc32(split.tokens_N[: 2**25])]
