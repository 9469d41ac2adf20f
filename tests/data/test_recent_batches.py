"""The batches of `recent_tricks`: the same tokens in other windows, other batches, or other pieces of words."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.tricks import batch_ramp, bpe_dropout, length_ramp
from zerotollm.data.batches.windows import Batch
from zerotollm.experiment import Experiment
from zerotollm.studies.suite import changed

STEPS = 20


def text_experiment(tmp_path, monkeypatch) -> Experiment:
    """Return an experiment on a small text, with 4 windows of 16 tokens."""
    monkeypatch.setenv("ZEROTOLLM_DATA", str(tmp_path / "data"))
    path = tmp_path / "text.txt"
    words = "the king sees a stone in the morning. a bird hears rain, and everybody answers: 1, 2."
    path.write_text("\n\n".join(f"{n} {words}" for n in range(200)), encoding="utf-8")
    fields = {
        "data.corpus": str(path),
        "data.context": 16,
        "data.batch_size": 4,
        "tokenizer.vocab_size": 330,
        "train.steps": STEPS,
    }
    return changed(Experiment(), fields)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    return text_experiment(tmp_path, monkeypatch)


def all_targets(batches, steps) -> np.ndarray:
    return np.concatenate([batches[step]["targets"].reshape(-1) for step in steps])


def check_shapes(feed, batches, steps) -> None:
    """Check that every batch has one of the shapes that are compiled."""
    known = {shapes["inputs"][0] for shapes in feed.training_shapes}
    seen = {batches[step]["inputs"].shape for step in steps}
    assert seen == known


def test_the_length_ramp_cuts_windows(experiment):
    feed = length_ramp.dataset(experiment)
    plain = length_ramp.components.dataset(experiment).training(seed=1)
    batches = feed.training(seed=1)
    lengths = [batches[step]["inputs"].shape[1] for step in range(STEPS)]
    assert lengths == [4] * 5 + [8] * 5 + [16] * 10
    check_shapes(feed, batches, range(STEPS))
    for step in range(STEPS):
        np.testing.assert_array_equal(all_targets(batches, [step]), all_targets(plain, [step]))
        np.testing.assert_array_equal(batches[step]["inputs"][:, 1:], batches[step]["targets"][:, :-1])
    assert feed.tokens_per_step == 64


def test_the_batch_ramp_reads_the_same_windows_in_more_steps(experiment):
    more = replace(experiment, train=replace(experiment.train, steps=STEPS * 5 // 4))
    feed = batch_ramp.dataset(more)
    plain = batch_ramp.components.dataset(experiment).training(seed=1)
    batches = feed.training(seed=1)
    rows = [len(batches[step]["inputs"]) for step in range(25)]
    assert rows == [2] * 10 + [4] * 15
    check_shapes(feed, batches, range(25))
    np.testing.assert_array_equal(all_targets(batches, range(25)), all_targets(plain, range(STEPS)))
    assert feed.tokens_per_step * 25 == 64 * STEPS


@pytest.fixture
def feed(experiment):
    return bpe_dropout.components.dataset(experiment)


def test_without_dropout_words_are_segmented_as_by_the_tokenizer(feed):
    merges = bpe_dropout.merges_of(feed.tokenizer)
    text = "the morning bird answers everybody,\nand the stone hears 12 kings. \u00e9"
    ids = feed.tokenizer.encode(text)
    random = np.random.default_rng(0)
    assert merges.again(np.asarray(ids), 0.0, random) == list(ids)


def test_dropout_keeps_the_text_and_takes_more_tokens(feed):
    merges = bpe_dropout.merges_of(feed.tokenizer)
    text = "the morning bird answers everybody and hears the stone in the rain. " * 20
    ids = np.asarray(feed.tokenizer.encode(text))
    again = merges.again(ids, 0.1, np.random.default_rng(0))
    assert feed.tokenizer.decode(again) == text
    assert 1.02 * len(ids) < len(again) < 1.6 * len(ids)
    single = merges.again(ids, 1.0, np.random.default_rng(0))
    assert feed.tokenizer.decode(single) == text
    assert max(len(merges.pieces[token]) for token in single) == 1


def test_a_merge_that_is_skipped_by_hand():
    """ "abc" with the merges ab, then abc: skipped at the first try in half of the cases."""
    ids = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    merges = bpe_dropout.Merges(ids, np.array([0.0, 0.0, 0.0, -1.0, -2.0]), tuple(ids), bos=9)
    random = np.random.default_rng(0)
    assert merges.segment("abc", 0.0, random) == [4]
    counts = {(4,): 0, (3, 2): 0, (0, 1, 2): 0}
    for _ in range(4000):
        counts[tuple(merges.segment("abc", 0.5, random))] += 1
    np.testing.assert_allclose([n / 4000 for n in counts.values()], [0.25, 0.25, 0.5], atol=0.03)


def test_batches_with_dropout_are_a_function_of_seed_and_step(experiment):
    feed = bpe_dropout.dataset(experiment)
    one, two = feed.training(seed=1), feed.training(seed=1)

    def same(left: Batch, right: Batch) -> bool:
        return all(np.array_equal(left[name], right[name]) for name in left)

    plain = bpe_dropout.components.dataset(experiment).training(seed=1)
    assert same(one[3], two[3])
    assert not same(one[3], feed.training(seed=2)[3])
    assert not same(one[3], plain[3])
    assert {name: (x.shape, x.dtype) for name, x in one[3].items()} == {
        name: (x.shape, x.dtype) for name, x in plain[3].items()
    }
    np.testing.assert_array_equal(one[3]["inputs"][:, 1:], one[3]["targets"][:, :-1])
    assert np.array_equal(
        feed.evaluation("validation")[0]["targets"],
        bpe_dropout.components.dataset(experiment).evaluation("validation")[0]["targets"],
    )
