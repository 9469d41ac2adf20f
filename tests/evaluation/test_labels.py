"""Scores of labels, against those of scikit-learn, and the baseline."""

import numpy as np
import pytest

from zerotollm.evaluation.labels import baseline_scores, label_scores


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
