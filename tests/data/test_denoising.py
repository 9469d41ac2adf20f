"""Span corruption and prefix LM: nothing is lost, and a batch is a pure function of (seed, step)."""

from itertools import islice

import numpy as np
import pytest

from zerotollm.data.batches import evaluation_batches, training_batches
from zerotollm.data.denoising import DENSITY, SENTINELS, Denoising, hidden, prefix_lm, span_corruption
from zerotollm.data.tokens import TokenizedSplit
from zerotollm.errors import UsageError

FIRST, CONTEXT, EOS, PAD = 5000, 60, 2, 0


def batches(corrupt, seed=0):
    tokens = np.arange(100, 3100, dtype=np.uint32)
    windows = training_batches(
        TokenizedSplit(tokens, np.zeros(1, np.int64), 0), context=CONTEXT, batch_size=4, seed=seed
    )
    return windows, Denoising(windows, corrupt, seed)


def put_back(source, target):
    """The window, from what is seen and what is hidden."""
    spans, current = {}, None
    for token in target:
        if token >= FIRST:
            current = spans.setdefault(int(token), [])
        elif token not in (EOS, PAD):
            current.append(int(token))
    seen = [t for t in source.tolist() if t not in (EOS, PAD)]
    return [t for token in seen for t in (spans[token] if token >= FIRST else [token])]


def test_spans_put_back_are_the_window():
    windows, dataset = batches(span_corruption(FIRST, CONTEXT))
    tokens, spans = hidden(CONTEXT)
    assert tokens == round(DENSITY * CONTEXT)
    for step in range(5):
        batch = dataset[step]
        for row in range(4):
            source, target = batch["sources"][row], batch["targets"][row]
            assert put_back(source, target) == windows[step]["inputs"][row].tolist()
            assert (source >= FIRST).sum() == (target >= FIRST).sum() == spans
            assert source[-1] == target[-1] == EOS
    shapes = {name: array.shape for name, array in dataset[0].items()}
    assert shapes["sources"] == (4, CONTEXT - tokens + spans + 1)
    assert shapes["targets"] == shapes["weights"] == (4, tokens + spans + 1)


def test_prefix_and_rest_are_the_window_and_inputs_are_targets_later():
    windows, dataset = batches(prefix_lm(CONTEXT))
    cuts = set()
    for step in range(20):
        batch = dataset[step]
        np.testing.assert_array_equal(batch["weights"], batch["targets"] != PAD)
        for row in range(4):
            sides = [batch[name][row] for name in ("sources", "targets")]
            source, target = (side[side != PAD] for side in sides)
            assert source[-1] == target[-1] == EOS
            assert [*source[:-1], *target[:-1]] == windows[step]["inputs"][row].tolist()
            inputs = batch["inputs"][row]
            np.testing.assert_array_equal(inputs[1 : len(target)], target[:-1])
            cuts.add(len(source))
    assert len(cuts) > 20


def test_a_batch_depends_on_seed_and_step_only():
    _, a = batches(span_corruption(FIRST, CONTEXT))
    _, again = batches(span_corruption(FIRST, CONTEXT))
    _, b = batches(span_corruption(FIRST, CONTEXT), seed=1)
    assert all(np.array_equal(a[7][name], again[7][name]) for name in a[7])
    assert not np.array_equal(a[7]["targets"], b[7]["targets"])
    assert not np.array_equal(a[7]["targets"], a[8]["targets"])


def test_evaluation_ends_with_the_last_window():
    """Of batches that begin anew after the last, as Grain's do: a loop over them once never ended."""
    split = TokenizedSplit(np.arange(100, 700, dtype=np.uint32), np.zeros(1, np.int64), 0)
    windows = evaluation_batches(split, context=CONTEXT, batch_size=4)
    some = list(islice(Denoising(windows, prefix_lm(CONTEXT), 0), 3 * len(windows)))
    assert len(some) == len(windows) == 3


def test_what_has_no_room_is_refused():
    with pytest.raises(UsageError, match="needs 2 tokens"):
        span_corruption(FIRST, 1)
    with pytest.raises(UsageError, match=f"there are {SENTINELS} sentinels"):
        span_corruption(FIRST, 4000)
