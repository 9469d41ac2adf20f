"""Question: which BLEU does a Transformer of two million parameters reach on the captions of Multi30k?

Group: translation

Command: python launch.py --experiment multi30k --data.corpus train.en.gz:train.de.gz
--data.validation val.en.gz:val.de.gz --data.test test_2016_flickr.en.gz:test_2016_flickr.de.gz

Time: not yet measured

Expected: not yet measured
"""

from dataclasses import replace
from functools import partial

import numpy as np

from experiments.translate import experiment as translate
from experiments.tricks.bpe_dropout import Merges, merges_of
from zerotollm import components
from zerotollm.data.batches.buckets import bucket_training_batches, plan_buckets
from zerotollm.data.batches.rows import pair_batch
from zerotollm.data.feed import Feed
from zerotollm.data.tokens.byte_tokenizer import SPACE
from zerotollm.data.tokens.pairs import TokenizedPairs, prepare_pairs
from zerotollm.data.tokens.sentencepiece import Tokenizer
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.experiment import Experiment

COPIES = 8
"""segmentations of each word, and of the training pairs: so many epochs have no pair in the same tokens"""
RATE = 0.1
"""probability that a merge is skipped (the choice of arXiv:1910.13267)"""


def experiment() -> Experiment:
    """Return `translate` for short captions of images."""
    parent = translate()
    return replace(
        parent,
        name="multi30k",
        data=replace(parent.data, corpus="", context=96, batch_size=16),
        tokenizer=replace(parent.tokenizer, vocab_size=4096),
        model=replace(parent.model, dropout=0.2, tie_embeddings=True),
        train=replace(parent.train, steps=4000, sample_every=0),
        sample=replace(parent.sample, prompt="Two dogs run through the snow.", beam_size=5, length_penalty=1.0),
    )


def words_of(tokens_N: np.ndarray, merges: Merges) -> list[tuple[int, ...]]:
    """Return the tokens in groups: those of a word together, special tokens and bytes alone."""
    groups: list[tuple[int, ...]] = []
    word: tuple[int, ...] = ()
    for token in tokens_N.tolist():
        piece = merges.pieces[token]
        is_normal = piece in merges.ids
        if word and (not is_normal or piece.startswith(SPACE)):
            groups.append(word)
            word = ()
        if is_normal:
            word += (token,)
        else:
            groups.append((token,))
    return groups + [word] * bool(word)


def segmented_again(side: TokenizedSplit, merges: Merges, random: np.random.Generator) -> TokenizedSplit:
    """Return `COPIES` copies of the texts, one after another, whose words are segmented with BPE-dropout."""
    groups = words_of(side.tokens_N, merges)

    def draw(group: tuple[int, ...]) -> list[list[int]]:
        pieces = [merges.pieces[token] for token in group]
        if pieces[0] not in merges.ids:
            return [list(group)] * COPIES
        return [merges.segment("".join(pieces), RATE, random) for _ in range(COPIES)]

    segmentations = {group: draw(group) for group in dict.fromkeys(groups)}
    tokens: list[int] = []
    for _ in range(COPIES):
        chosen = random.integers(COPIES, size=len(groups)).tolist()
        for group, number in zip(groups, chosen, strict=True):
            tokens += segmentations[group][number]
    tokens_N = np.array(tokens, side.tokens_N.dtype)
    return replace(side, tokens_N=tokens_N, document_starts_D=np.flatnonzero(tokens_N == merges.bos))


def dataset(experiment: Experiment) -> Feed:
    """Return the built-in batches, whose training pairs are segmented with BPE-dropout (arXiv:1910.13267).

    Pairs are segmented before they are put into batches of like length. Validation and test stay as they are.
    """
    feed, data = components.dataset(experiment), experiment.data
    assert isinstance(feed.tokenizer, Tokenizer)
    merges, random = merges_of(feed.tokenizer), np.random.default_rng(0)
    train = prepare_pairs(data, feed.tokenizer).splits["train"]
    pairs = TokenizedPairs(
        segmented_again(train.sources, merges, random),
        segmented_again(train.targets, merges, random),
        np.tile(train.num_bytes, COPIES),
    )
    plan = plan_buckets(
        pairs.side_lengths, context=data.context, batch_size=data.batch_size, buckets=data.buckets
    )
    tokens = int(pairs.num_predicted[plan.used].sum())
    shapes = tuple(
        {name: ((bucket.rows, bucket.width), kind) for name, (_, kind) in feed.training_shapes[0].items()}
        for bucket in plan.buckets
    )
    return replace(
        feed,
        training=partial(bucket_training_batches, plan, partial(pair_batch, pairs)),
        training_shapes=shapes,
        tokens=round(tokens / COPIES),
        tokens_per_step=tokens / plan.num_batches,
    )
