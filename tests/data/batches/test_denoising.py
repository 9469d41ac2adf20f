"""Span corruption and prefix LM keep all text, and a batch depends on (seed, step) alone."""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from zerotollm.data.batches.denoising import (
    DENSITY,
    SENTINELS,
    denoising_batches,
    num_hidden,
    prefix_lm,
    span_corruption,
)
from zerotollm.data.batches.windows import evaluation_batches, training_batches
from zerotollm.data.config import DataConfig, TokenizerConfig
from zerotollm.data.feed import open_feed
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import UsageError
from zerotollm.evaluation.loss import evaluate_batches

FIRST, CONTEXT, EOS, PAD = 5000, 60, 2, 0


def batches(corrupt, seed=0):
    tokens = np.arange(100, 3100, dtype=np.uint32)
    windows = training_batches(
        TokenizedSplit(tokens, np.zeros(1, np.int64), 0), context=CONTEXT, batch_size=4, seed=seed
    )
    return windows, denoising_batches(windows, corrupt, seed, batch_size=4)


def put_back(source, target):
    """Return the window from its visible and hidden tokens."""
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
    tokens, spans = num_hidden(CONTEXT)
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
    """A loop over the batches once never ended."""
    split = TokenizedSplit(np.arange(100, 700, dtype=np.uint32), np.zeros(1, np.int64), 0)
    windows = evaluation_batches(split, context=CONTEXT, batch_size=4)
    some = list(islice(denoising_batches(windows, prefix_lm(CONTEXT), 0, batch_size=4), 3 * len(windows)))
    assert len(some) == len(windows) == 3


def test_windows_that_are_too_short_or_too_long_are_refused():
    with pytest.raises(UsageError, match="needs at least 2 tokens"):
        span_corruption(FIRST, 1)
    with pytest.raises(UsageError, match=f"there are {SENTINELS} sentinels"):
        span_corruption(FIRST, 4000)


KINDS = {"span_corruption": span_corruption(FIRST, CONTEXT), "prefix_lm": prefix_lm(CONTEXT)}


def joined(batches) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_and_processes_do_not_change_the_data(kind):
    split = TokenizedSplit(np.arange(100, 3100, dtype=np.uint32), np.zeros(1, np.int64), 0)

    def dataset(batch_size, process=0, processes=1):
        parts = {"process_index": process, "process_count": processes}
        windows = training_batches(split, context=CONTEXT, batch_size=batch_size, seed=3, **parts)
        return denoising_batches(windows, KINDS[kind], 3, batch_size, process * batch_size // processes)

    halves = dataset(4, 0, 2), dataset(4, 1, 2)
    for step in (0, 5, 40):  # the last is of a later epoch
        whole = dataset(4)[step]
        for parts in ([dataset(2)[2 * step], dataset(2)[2 * step + 1]], [half[step] for half in halves]):
            for name, array in joined(parts).items():
                np.testing.assert_array_equal(array, whole[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [CONTEXT + 1, 5 * CONTEXT + 1, 5 * CONTEXT + 2, 5 * CONTEXT + 17])
def test_evaluation_predicts_real_text_alone_for_any_batch_size(kind, num_tokens):
    tokens_N = np.arange(100, 100 + num_tokens, dtype=np.uint32)
    split = TokenizedSplit(tokens_N, np.zeros(1, np.int64), 0)
    texts = [tokens_N[start : start + CONTEXT] for start in range(0, num_tokens, CONTEXT)]
    texts = [text.tolist() for text in texts if len(text) > 1]
    first: dict[str, np.ndarray] = {}
    for batch_size in (1, 3, 4):
        windows = evaluation_batches(split, context=CONTEXT, batch_size=batch_size)
        batch = joined(list(denoising_batches(windows, KINDS[kind], 0, batch_size)))
        assert (batch["sources"] != PAD).any(axis=1).all(), "attention needs something to look at"
        assert not batch["weights"][len(texts) :].any()
        assert ((batch["targets"] != PAD) == batch["weights"]).all()
        sides = batch["sources"][: len(texts)], batch["targets"][: len(texts)]
        for text, source, target in zip(texts, *sides, strict=True):
            if kind == "span_corruption":
                assert put_back(source, target) == text
            else:
                assert [token for side in (source, target) for token in side if token > EOS] == text
        real = {name: array[: len(texts)] for name, array in batch.items()}
        first = first or real
        assert all(np.array_equal(first[name], real[name]) for name in real)


@pytest.mark.parametrize("kind", KINDS)
def test_every_shorter_window_fits_and_targets_have_their_mean_length(kind):
    random = np.random.default_rng(0)
    for length in range(2, CONTEXT + 1):
        source, target = KINDS[kind].corrupt(random, np.arange(100, 100 + length))
        assert len(source) < KINDS[kind].source_length
        assert len(target) < KINDS[kind].target_length
    lengths = [len(KINDS[kind].corrupt(random, np.arange(CONTEXT))[1]) + 1 for _ in range(4000)]
    assert np.mean(lengths) == pytest.approx(KINDS[kind].mean_target, abs=4 * np.std(lengths) / 60)


@pytest.fixture
def corpus(tmp_path):
    draw = np.random.default_rng(0)
    words = ["heaven", "and", "earth", "w\u00e4ter", "\u5929", "were", "made"]
    (tmp_path / "text.txt").write_text(" ".join(draw.choice(words, 6000)), encoding="utf-8")
    return DataConfig(corpus=str(tmp_path / "text.txt"), dir=str(tmp_path / "data"), context=32, batch_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_uniform_model_has_the_bits_per_byte_of_arithmetic(kind, corpus):
    """Every target token costs log2 V bits, and only text in the targets counts as bytes."""
    feed = open_feed(corpus, TokenizerConfig(vocab_size=300), objective=kind, pairs=True)
    V = feed.vocab_size
    assert feed.tokenizer.vocab_size + SENTINELS == V

    def uniform(params, batch):
        tokens = float(batch["weights"].sum())
        return {"nats": math.log(V) * tokens, "tokens": tokens}

    batches = list(feed.evaluation("validation"))
    scores = evaluate_batches(uniform, None, batches, num_bytes=feed.num_bytes["validation"])
    targets = [row[row > EOS].tolist() for batch in batches for row in batch["targets"]]
    token_bytes = feed.tokenizer.token_bytes
    hidden_bytes = sum(len(token_bytes(t)) for row in targets for t in row if t < V - SENTINELS)
    num_tokens = sum(len(row) + 1 for row in targets if row)  # eos
    assert scores["tokens"] == num_tokens == feed.evaluation_tokens
    assert scores["bytes"] == hidden_bytes
    assert scores["bpb"] == pytest.approx(num_tokens * math.log2(V) / hidden_bytes, rel=1e-12)
    assert feed.byte != "byte"

    steps = [feed.training(seed=0)[step] for step in range(400)]
    trained = [row[row > EOS].tolist() for batch in steps for row in batch["targets"]]
    assert sum(len(row) + 1 for row in trained) / 400 == pytest.approx(feed.tokens_per_step, rel=0.03)
    windows = feed.tokens / feed.tokens_per_step * 4
    told_bytes = feed.num_bytes["train"] / windows
    true_bytes = sum(len(token_bytes(t)) for row in trained for t in row if t < V - SENTINELS) / 1600
    assert told_bytes == pytest.approx(true_bytes, rel=0.03)
    shapes = {name: (array.shape, array.dtype.type) for name, array in steps[0].items()}
    assert shapes == feed.training_shapes[0]
    assert {n: (a.shape, a.dtype.type) for n, a in batches[0].items()} == feed.evaluation_shapes[0]
    halves = [feed.training(seed=0, process_index=part, process_count=2)[5] for part in (0, 1)]
    assert all(np.array_equal(array, steps[5][name]) for name, array in joined(halves).items())
    smaller = open_feed(
        replace(corpus, batch_size=2), TokenizerConfig(vocab_size=300), objective=kind, pairs=True
    )
    assert smaller.num_bytes == feed.num_bytes
    assert smaller.evaluation_tokens == feed.evaluation_tokens


def test_two_tokens_are_enough():
    random, text = np.random.default_rng(0), np.array([100, 101], np.int32)
    source, target = prefix_lm(2).corrupt(random, text)
    assert (source.tolist(), target.tolist()) == ([100], [101])
    source, target = span_corruption(FIRST, 2).corrupt(random, text)
    assert (source.tolist(), target.tolist()) == ([100, FIRST], [FIRST, 101])
    with pytest.raises(UsageError, match=r"data.context is 1, and .* needs at least 2 tokens"):
        prefix_lm(1)
    assert all(
        spans <= length - tokens for length in range(2, 2000) for tokens, spans in [num_hidden(length)]
    )
