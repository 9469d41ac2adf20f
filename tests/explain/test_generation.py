"""What was copied is found, to the token, and circles are circles."""

import numpy as np
import pytest

from zerotollm.explain.generation import (
    Generation,
    Measures,
    TextMeasures,
    distinct_ngrams,
    document_beginnings,
    explain_generation,
    longest_copied,
    repetition_rate,
)
from zerotollm.explain.statistics import Estimate

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
    assert "it copies less than real text repeats" in found.sentence()  # these stretches are training text
    same = explain_generation(params, model, tokenizer, real_BT[:4], real_BT[4:], tokens)
    apart = explain_generation(params, model, tokenizer, circles_BT, real_BT, tokens, alike=False).sentence()
    assert apart.startswith("Real texts are from the middle of documents.")
    assert "that it repeats itself more or less is not shown" in apart
    for word in ("copies more or less", "repeats itself more or less"):
        assert f"that it {word}" in same.sentence()
    assert len(found.samples) == len(found.nearest) == 8
    with pytest.raises(ValueError, match="samples of 30 tokens"):
        explain_generation(params, model, tokenizer, circles_BT[:, :30], real_BT, tokens)


def test_real_texts_begin_documents_as_samples_do():
    tokens_N = np.array([1, 5, 6, 7, 8, 1, 9, 5, 6, 1, 4, 4, 4, 4, 1, 2])
    np.testing.assert_array_equal(document_beginnings(tokens_N, 1, 3, 9), [[5, 6, 7], [9, 5, 6], [4, 4, 4]])
    np.testing.assert_array_equal(document_beginnings(tokens_N, 1, 3, 2), [[5, 6, 7], [4, 4, 4]])
    assert document_beginnings(tokens_N, 3, 3, 9).shape == (0, 3)


HANGS = Estimate(0.2, 0.1, 0.3)


def of(difference: Measures, hangs: Estimate = HANGS) -> str:
    """The sentence of a generation with these differences."""
    zero = Estimate(0.0, -1.0, 1.0)
    measures = TextMeasures((), zero, zero, (1.0, 1.0, 1.0), zero, zero)
    return Generation((), (), (), measures, measures, difference, hangs).sentence()


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Estimate(2.0, 1.0, 3.0), ("copies more than", "goes round", "surprises it more", "hang together, more")),
        (Estimate(-2.0, -3.0, -1.0), ("copies less than", "itself less than", "surprises it less", "together, less")),
        (
            Estimate(2.0, -0.1, 4.0),
            ("more or less than real text repeats is not shown", "itself more or less is not shown",
             "a difference is not shown", "whether more or less"),
        ),
    ],
)  # fmt: skip
def test_every_verdict_has_three_outcomes(difference, said):
    sentence = of(Measures(*[difference] * 4))
    for words in said:
        assert words in sentence
    assert "nothing shows" in of(Measures(*[difference] * 4), Estimate(0.2, -0.1, 0.5))
    assert "worse than those of other texts" in of(Measures(*[difference] * 4), Estimate(-0.2, -0.3, -0.1))
