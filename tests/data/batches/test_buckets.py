"""Batches of pairs: each pair once an epoch, a pure function of (seed, step), within the token budget."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerotollm.data.batches.buckets import (
    BucketPlan,
    bucket_evaluation_batches,
    bucket_training_batches,
    plan_buckets,
)
from zerotollm.data.batches.rows import pair_batch
from zerotollm.data.batches.windows import Batch
from zerotollm.data.tokens.pairs import TokenizedPairs
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import UsageError

BOS, EOS, PAD = 1, 2, 0


def split(texts) -> TokenizedSplit:
    lengths = [len(text) + 1 for text in texts]
    tokens = np.concatenate([[BOS, *text] for text in texts]) if texts else np.zeros(0)
    return TokenizedSplit(tokens.astype(np.uint16), np.cumsum([0, *lengths[:-1]])[: len(texts)], 0)


def pairs(sizes) -> TokenizedPairs:
    """Return pairs of the given (source, target) lengths; pair i repeats the token 10 + i."""
    sources = split([[10 + i] * s for i, (s, _) in enumerate(sizes)])
    targets = split([[10 + i] * t for i, (_, t) in enumerate(sizes)])
    return TokenizedPairs(sources, targets, np.zeros(len(sizes), np.int64))


def training_batches(data: TokenizedPairs, layout: BucketPlan, **options) -> Sequence[Batch]:
    return bucket_training_batches(layout, partial(pair_batch, data), **options)


def numbers(batch) -> list[int]:
    """Return which pairs are in a batch."""
    return [
        int(row[0]) - 10
        for row, weight in zip(batch["sources"], batch["weights"], strict=True)
        if weight.any()
    ]


many = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


@given(sizes=many, batch_size=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_an_epoch_has_every_pair_that_fits_exactly_once(sizes, batch_size, seed):
    data, context = pairs(sizes), 24
    layout = plan_buckets(data.side_lengths, context=context, batch_size=batch_size, buckets=4)
    fitting = [i for i, size in enumerate(sizes) if max(size) + 1 <= context]
    assert layout.too_long == len(sizes) - len(fitting)
    assert len(layout.buckets) <= 4
    assert all(b.rows >= 1 and b.rows * b.width <= batch_size * context for b in layout.buckets)
    if not fitting:
        with pytest.raises(UsageError, match="no training pair is left"):
            training_batches(data, layout, seed=seed)
        return
    batches = training_batches(data, layout, seed=seed)
    for epoch in (0, 1):
        steps = range(epoch * layout.num_batches, (epoch + 1) * layout.num_batches)
        epoch_batches = [batches[step] for step in steps]
        assert sorted(n for batch in epoch_batches for n in numbers(batch)) == fitting
        assert sum(not batch["weights"].any(1).all() for batch in epoch_batches) <= 1, (
            "more than one batch is padded"
        )
        shapes = {(b.rows, b.width) for b in layout.buckets}
        assert {batch["inputs"].shape for batch in epoch_batches} <= shapes
    fresh = training_batches(data, layout, seed=seed)
    for step in (layout.num_batches + 1, 0, 3):
        assert all(np.array_equal(fresh[step][name], batches[step][name]) for name in fresh[0])
    once = [
        n for batch in bucket_evaluation_batches(layout, partial(pair_batch, data)) for n in numbers(batch)
    ]
    assert sorted(once) == fitting


def test_a_batch_holds_source_and_target_with_eos():
    batch = pair_batch(pairs([(2, 1), (1, 3)]), np.array([1, 0]), rows=3, width=4)
    np.testing.assert_array_equal(
        batch["sources"], [[11, EOS, PAD, PAD], [10, 10, EOS, PAD], [EOS, PAD, PAD, PAD]]
    )
    np.testing.assert_array_equal(batch["inputs"], [[BOS, 11, 11, 11], [BOS, 10, PAD, PAD], [PAD] * 4])
    np.testing.assert_array_equal(batch["targets"], [[11, 11, 11, EOS], [10, EOS, PAD, PAD], [PAD] * 4])
    np.testing.assert_array_equal(batch["weights"], [[1, 1, 1, 1], [1, 1, 0, 0], [0] * 4])


def test_epochs_and_seeds_differ_in_order_and_in_the_pairs_of_a_batch():
    rng = np.random.default_rng(0)
    data = pairs(rng.integers(1, 30, (400, 2)).tolist())
    layout = plan_buckets(data.side_lengths, context=32, batch_size=4, buckets=4)
    a, b = (training_batches(data, layout, seed=seed) for seed in (0, 1))
    assert numbers(a[0]) != numbers(b[0])
    assert {frozenset(numbers(a[i])) for i in range(layout.num_batches)} != {
        frozenset(numbers(a[layout.num_batches + i])) for i in range(layout.num_batches)
    }


def test_padding_is_small_and_processes_share_the_batch_of_one():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(3.2, 0.5, (2000, 1)) * rng.uniform(0.9, 1.1, (2000, 2)), 1, 90).astype(int)
    data = pairs(sizes.tolist())
    layout = plan_buckets(data.side_lengths, context=96, batch_size=16, buckets=4)
    whole = training_batches(data, layout, seed=0)
    used = sum(whole[i]["weights"].sum() for i in range(layout.num_batches))
    assert used > 0.7 * sum(whole[i]["weights"].size for i in range(layout.num_batches))
    parts = [training_batches(data, layout, seed=0, process_index=p, process_count=2) for p in (0, 1)]
    for name, array in whole[3].items():
        np.testing.assert_array_equal(array, np.concatenate([part[3][name] for part in parts]))
    with pytest.raises(UsageError, match="7 processes"):
        training_batches(data, layout, seed=0, process_count=7)
