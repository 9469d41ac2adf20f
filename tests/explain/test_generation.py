"""What was copied is found, to the token, and circles are circles."""

import numpy as np
import pytest

from zerotollm.explain.generation import (
    distinct_ngrams,
    explain_generation,
    longest_copied,
    repetition_rate,
)

DRAW = np.random.default_rng(0)
TRAIN = DRAW.integers(0, 300, 20_000).astype(np.uint16)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 31, 40])
def test_a_planted_copy_is_found_to_the_token(length):
    text = 300 + np.arange(40)  # ids that training never had
    start = (40 - length) // 2
    text[start : start + length] = TRAIN[7000 : 7000 + length]
    (found,) = longest_copied([text], TRAIN)
    assert (found.start, found.length) == (start, length)
    np.testing.assert_array_equal(TRAIN[found.source : found.source + length], text[start : start + length])


def test_nothing_copied_is_zero_and_the_longest_of_all_is_taken():
    assert longest_copied([np.arange(400, 420)], TRAIN)[0].length == 0
    train, text = DRAW.integers(0, 4, 300), DRAW.integers(0, 4, 30)
    runs = {tuple(train[i : i + n]) for n in range(1, 31) for i in range(300 - n + 1)}
    longest = max(n for n in range(1, 31) for i in range(30 - n + 1) if tuple(text[i : i + n]) in runs)
    assert longest_copied([text], train)[0].length == longest


def test_repetition_and_distinct_runs():
    assert repetition_rate(np.arange(20)) == 0
    assert repetition_rate(np.tile([1, 2, 3], 10)) == pytest.approx(1 - 3 / 27)
    assert distinct_ngrams([np.array([1, 2, 1, 2])], 2) == pytest.approx(2 / 3)
    assert distinct_ngrams([np.arange(9)], 3) == 1


def test_texts_of_the_model_beside_real_ones(params, model, tokenizer, tokens):
    T = 31
    real_BT = np.stack([tokens[i * T : (i + 1) * T] for i in range(1, 9)])
    circles_BT = np.tile(real_BT[:, :3], 11)[:, :T]
    found = explain_generation(params, model, tokenizer, circles_BT, real_BT, tokens)
    assert found.real.longest_copy.value == T  # these stretches are training text
    assert found.own.repetition.low > found.real.repetition.high
    assert "round in circles" in found.sentence()
    assert "nothing shows that later parts" in found.sentence()  # this model has learned nothing
    assert len(found.samples) == len(found.nearest) == 8
    with pytest.raises(ValueError, match="samples of 30 tokens"):
        explain_generation(params, model, tokenizer, circles_BT[:, :30], real_BT, tokens)
