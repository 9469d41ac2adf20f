"""A batch depends on (seed, step) alone, and windows cover each target once."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerotollm.data.batches.mixtures import stacked, staged
from zerotollm.data.batches.windows import epoch_windows, evaluation_batches, training_batches
from zerotollm.data.tokens.text import TokenizedSplit
from zerotollm.errors import UsageError

BOS = 1


def numbered(num_tokens: int, document: int = 10**9) -> TokenizedSplit:
    """Return tokens that tell their position: token i is 100 + i, but every document-th is bos."""
    tokens_N = np.arange(100, 100 + num_tokens, dtype=np.uint32)
    tokens_N[::document] = BOS
    return TokenizedSplit(tokens_N, np.arange(0, num_tokens, document), num_tokens)


def equal(left, right) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


# Without bos, the first target of a row tells the position of the row.
def targets(batches, num_steps) -> np.ndarray:
    return np.concatenate([batches[step]["targets"] for step in range(num_steps)]) - 100


shapes = st.fixed_dictionaries(
    {"context": st.integers(1, 9), "batch_size": st.integers(1, 7), "seed": st.integers(0, 2**32 - 1)}
)


# --- training


@given(shape=shapes, extra=st.integers(1, 60))
def test_an_epoch_has_every_target_at_most_once_and_omits_less_than_two_windows(shape, extra):
    split = numbered(shape["context"] + extra)
    context, batch_size = shape["context"], shape["batch_size"]
    num_tokens = len(split.tokens_N)
    starts = [epoch_windows(num_tokens, context, shape["seed"], epoch) for epoch in range(3)]
    windows = len(starts[0])
    steps = -(-3 * windows // batch_size)
    rows = targets(training_batches(split, **shape), steps)
    for epoch, start_W in enumerate(starts):
        assert len(start_W) == windows
        assert num_tokens - 1 - windows * context < 2 * context
        read = rows[epoch * windows : (epoch + 1) * windows].ravel()
        assert len(read) == windows * context
        first = start_W.min() + 1
        np.testing.assert_array_equal(np.sort(read), np.arange(first, first + len(read)))


def test_every_token_is_a_target_in_some_epoch_and_at_every_place_of_a_window():
    split = numbered(30)
    rows = targets(training_batches(split, context=4, batch_size=6, seed=0), 200)
    for place in range(4):
        assert set(rows[:, place]) == set(range(1 + place, 27 + place))
    assert set(rows.ravel()) == set(range(1, 30))


def test_epochs_and_seeds_differ_in_order_and_phase():
    split = numbered(4007)
    rows = {
        seed: targets(training_batches(split, context=8, batch_size=1, seed=seed), 1000) for seed in (0, 1)
    }
    assert not np.array_equal(rows[0][:499], rows[0][499:998])
    assert not np.array_equal(rows[0], rows[1])
    phases = {int(epoch_windows(4007, context=8, seed=0, epoch=epoch).min()) for epoch in range(100)}
    assert len(phases) == 15
    starts = rows[0][:499, 0]
    assert abs(np.corrcoef(starts, np.arange(499))[0, 1]) < 0.2, "windows are not shuffled"


@given(shape=shapes, steps=st.lists(st.integers(0, 2**39), min_size=1, max_size=5))
def test_a_batch_depends_on_seed_and_step_only(shape, steps):
    split = numbered(50, document=7)
    used, fresh = training_batches(split, **shape), training_batches(split, **shape)
    there = [used[step] for step in steps]
    back = [fresh[step] for step in reversed(steps)]
    assert all(equal(a, b) for a, b in zip(there, reversed(back), strict=True))


@given(shape=shapes, step=st.integers(0, 1000))
def test_targets_are_the_next_inputs_and_shapes_never_change(shape, step):
    batch = training_batches(numbered(50), **shape)[step]
    size = (shape["batch_size"], shape["context"])
    types = {"inputs": np.int32, "targets": np.int32, "weights": np.float32, "segments": np.int32}
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (size, kind) for name, kind in types.items()
    }
    np.testing.assert_array_equal(batch["targets"][:, :-1], batch["inputs"][:, 1:])
    np.testing.assert_array_equal(batch["weights"], 1)


@given(shape=shapes, document=st.integers(1, 20), step=st.integers(0, 100))
def test_segments_are_the_documents_of_a_window_counted_from_one(shape, document, step):
    batch = training_batches(numbered(60, document), **shape)[step]
    for inputs, segments in zip(batch["inputs"], batch["segments"], strict=True):
        number, expected = 0, []
        for place, token in enumerate(inputs):
            number += place == 0 or token == BOS
            expected.append(number)
        assert segments.tolist() == expected


@given(parts=st.integers(1, 4), processes=st.integers(1, 4), step=st.integers(0, 100))
def test_processes_share_the_batch_of_one(parts, processes, step):
    shape = {"context": 5, "batch_size": parts * processes, "seed": 3}
    split = numbered(80, document=9)
    whole = training_batches(split, **shape)[step]
    rows = [
        training_batches(split, **shape, process_index=p, process_count=processes)[step]
        for p in range(processes)
    ]
    assert equal(whole, {name: np.concatenate([row[name] for row in rows]) for name in whole})


def test_threads_read_the_same_batches():
    options = {"context": 8, "batch_size": 4, "seed": 0}
    alone, shared = (training_batches(numbered(500, document=50), **options) for _ in range(2))
    with ThreadPoolExecutor(4) as threads:
        for step, batch in enumerate(threads.map(shared.__getitem__, range(200))):
            assert equal(batch, alone[step])


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_a_split_shorter_than_a_window_is_refused(num_tokens):
    with pytest.raises(UsageError, match=rf"{num_tokens} tokens long.*context 8 needs 9"):
        training_batches(numbered(num_tokens), context=8, batch_size=2, seed=0)
    assert len(training_batches(numbered(9), context=8, batch_size=2, seed=0)[5]["inputs"]) == 2


def test_a_batch_that_processes_do_not_divide_is_refused():
    with pytest.raises(UsageError, match=r"data\.batch_size 6 .* 4 processes"):
        training_batches(numbered(100), context=8, batch_size=6, seed=0, process_count=4)


def test_batches_are_much_faster_than_training():
    dataset = training_batches(numbered(1_000_000, document=1000), context=128, batch_size=16, seed=0)
    dataset[0]
    times = []
    for step in range(200):
        begun = time.thread_time()  # of the processor: what other programs take does not count
        dataset[step]
        times.append(time.thread_time() - begun)
    assert 16 * 128 / np.median(times) > 1e6, "tokens/s; training on a CPU runs at some ten thousand"


# --- evaluation


@given(num_tokens=st.integers(2, 100), context=st.integers(1, 12), batch_size=st.integers(1, 5))
def test_evaluation_has_every_target_exactly_once_in_batches_of_one_shape(num_tokens, context, batch_size):
    split = numbered(num_tokens)
    batches = list(evaluation_batches(split, context=context, batch_size=batch_size))
    assert {array.shape for batch in batches for array in batch.values()} == {(batch_size, context)}
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    counts = joined["weights"] == 1
    np.testing.assert_array_equal(joined["targets"][counts], split.tokens_N[1:])
    np.testing.assert_array_equal(joined["inputs"][counts], split.tokens_N[:-1])
    assert set(joined["weights"][~counts]) <= {0}
    assert set(joined["targets"][~counts]) <= {0}
    assert joined["segments"].min() == 1
    assert len(batches) == -(-(num_tokens - 1) // (context * batch_size))


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_nothing_to_predict_is_refused(num_tokens):
    with pytest.raises(UsageError, match="no text"):
        evaluation_batches(numbered(num_tokens), context=8, batch_size=2)


def test_evaluation_ends_and_can_be_read_from_its_end():
    batches = evaluation_batches(numbered(100), context=8, batch_size=4)
    assert equal(batches[-1], list(batches)[-1])
    with pytest.raises(IndexError):
        batches[len(batches)]


# --- mixtures


def test_a_second_stage_starts_at_its_own_step_0():
    batches = staged(["a0", "a1", "a2"], ["b0", "b1", "b2"], steps=2)
    assert [batches[step] for step in range(3)] == ["a0", "a1", "b0"]
    longer = staged(["a0", "a1"], [f"b{step}" for step in range(9)], steps=2)
    assert [longer[step] for step in range(5)] == ["a0", "a1", "b0", "b1", "b2"]


def test_seeds_are_stacked_on_a_new_first_axis():
    split = numbered(100)
    seeds = [training_batches(split, context=8, batch_size=4, seed=seed) for seed in (3, 4)]
    batch = stacked(seeds)[5]
    for lane, single in enumerate(seeds):
        assert equal({name: array[lane] for name, array in batch.items()}, single[5])
