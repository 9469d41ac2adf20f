"""Scores of labels, against those of scikit-learn, and the baseline."""

import numpy as np
import pytest

from zerotollm.data.config import TokenizerConfig
from zerotollm.data.tokens.sentencepiece import train_tokenizer
from zerotollm.errors import UsageError
from zerotollm.evaluation.classification import baseline_scores, label_probabilities, label_scores


def test_scores_by_hand():
    scores = label_scores(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), ["a", "b", "c"])
    assert scores["accuracy"] == 0.75
    assert scores["confusion"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert scores["by_label"]["a"] == {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "examples": 3}
    # Label c neither occurs nor was found: it has no say.
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="a development requirement")
    random = np.random.default_rng(0)
    true_N, found_N = random.integers(0, 4, 200), random.integers(0, 5, 200)
    scores = label_scores(true_N, found_N, list("abcde"))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true_N, found_N))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(true_N, found_N, average="macro"))
    assert scores["confusion"] == metrics.confusion_matrix(true_N, found_N, labels=range(5)).tolist()


def test_the_baseline_finds_what_words_tell():
    pytest.importorskip("sklearn", reason="a development requirement")
    rows = [
        (f"{word} {i % 7} {word}", label) for i in range(30) for word, label in (("sun", "x"), ("sea", "y"))
    ]
    scores = baseline_scores(
        {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}, "test", ["x", "y"]
    )
    assert scores["accuracy"] == 1.0
    assert scores["examples"] == 10


@pytest.mark.parametrize(
    "texts",
    [["😀 ☀", "😡😡 ☁"] * 9, ["天 地", "海"] * 9, ["sun moon", "sea shore"], ["a b", "c d"] * 9],
    ids=str,
)
def test_the_baseline_without_words_that_recur(texts):
    """Emoji, single characters, and texts that share no word."""
    pytest.importorskip("sklearn", reason="a development requirement")
    rows = [(text, "xy"[i % 2]) for i, text in enumerate(texts)]
    scores = baseline_scores({"train": rows, "validation": rows}, "validation", ["x", "y"])
    assert scores == {"not_computed": "no word occurs twice"}


def test_a_text_that_the_context_does_not_hold_is_refused():
    tokenizer = train_tokenizer(TokenizerConfig("char", 20, byte_fallback=False), ["abcdefgh"] * 20)
    seen = []

    def step(params, batch):
        seen.append(batch["inputs"][batch["inputs"] != tokenizer.pad_id])
        return (
            np.full((len(batch["inputs"]), 2), 0.5),
            np.zeros(len(batch["inputs"]), int),
            batch["weights"].max(1),
        )

    found = label_probabilities(step, None, tokenizer, ["abc", "a" * 8], max_length=10)
    assert found.tolist() == [[0.5, 0.5]] * 2
    assert len(seen[0]) == (1 + 4) + (1 + 9)  # bos and a space before each
    with pytest.raises(
        UsageError, match="the text number 2 is 10 tokens long and the context of this model holds 9"
    ):
        label_probabilities(step, None, tokenizer, ["abc", "a" * 9], max_length=10)


def test_mistakes_of_the_baseline_are_in_the_row_of_the_true_label():
    pytest.importorskip("sklearn", reason="a development requirement")
    train = [("sun", "x"), ("sea", "y")] * 5
    told = [("sun", "x")] * 3 + [("sea", "x")] + [("sea", "y")] * 2
    scores = baseline_scores({"train": train, "validation": train, "test": told}, "test", ["x", "y"])
    assert scores["confusion"] == [[3, 1], [0, 2]]
    assert scores["strength"] == 1.0, "the first of those that are best on validation"


def test_the_baseline_reads_pairs_of_words_and_words_of_two_texts():
    pytest.importorskip("sklearn", reason="a development requirement")
    train = [("red then blue", "x"), ("blue then red", "y")] * 2
    scores = baseline_scores({"train": train, "validation": train}, "validation", ["x", "y"])
    assert scores["accuracy"] == 1.0, "the same words in another order"
    train = [("sun", "x"), ("sea", "y")] * 2
    assert baseline_scores({"train": train, "validation": train}, "validation", ["x", "y"])["accuracy"] == 1.0


def test_probabilities_of_texts_are_in_their_order_over_all_batches():
    tokenizer = train_tokenizer(TokenizerConfig("char", 20, byte_fallback=False), ["abcdefgh"] * 20)
    shapes = []

    def step(params, batch):
        shapes.append(batch["inputs"].shape)
        last = batch["weights"].argmax(1)  # the label is asked for at the last token
        assert (batch["weights"].sum(1) <= 1).all()
        ids = np.take_along_axis(batch["inputs"], last[:, None], 1)
        return ids.astype(float), np.zeros(len(ids), int), batch["weights"].max(1)

    texts = ["abcdefgh"[i % 8] * (1 + i) for i in range(70)]
    found = label_probabilities(step, None, tokenizer, texts, max_length=200)
    assert found[:, 0].tolist() == [tokenizer.encode(text)[-1] for text in texts]
    assert shapes == [(32, 64), (32, 128), (32, 128)], "the longest has 72 tokens"
