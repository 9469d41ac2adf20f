"""Copies are found to the token, repetition is counted, and verdicts follow the intervals."""

import numpy as np
import pytest

from zerotollm.data.tokens.suffix_array import suffix_array
from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.estimates import Estimate
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

DRAW = np.random.default_rng(0)
TRAIN = DRAW.integers(0, 300, 20_000).astype(np.uint16)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 31, 40])
def test_planted_copy_is_found_to_the_token(length):
    text = 300 + np.arange(40)  # ids that are not in the training text
    start = (40 - length) // 2
    text[start : start + length] = TRAIN[7000 : 7000 + length]
    (copy,) = longest_copied([text], suffix_array(TRAIN))
    assert (copy.start, copy.length) == (start, length)
    np.testing.assert_array_equal(TRAIN[copy.source : copy.source + length], text[start : start + length])


def test_longest_copies_of_several_texts():
    train = DRAW.integers(0, 4, 300)
    runs = {tuple(train[i : i + n]) for n in range(1, 31) for i in range(300 - n + 1)}
    texts = [np.arange(400, 420), *(DRAW.integers(0, 4, size) for size in (30, 3, 22))]
    longest = [
        max(
            (n for n in range(1, 31) for i in range(len(x) - n + 1) if tuple(x[i : i + n]) in runs), default=0
        )
        for x in texts
    ]
    copies = longest_copied(texts, suffix_array(train))
    assert [copy.length for copy in copies] == longest
    assert longest[0] == 0
    for x, copy in zip(texts, copies, strict=True):
        source = train[copy.source : copy.source + copy.length]
        np.testing.assert_array_equal(x[copy.start : copy.start + copy.length], source)


def test_repetition_and_distinct_runs():
    assert repetition_rate(np.arange(20)) == 0
    assert repetition_rate(np.tile([1, 2, 3], 10)) == pytest.approx(1 - 3 / 27)
    assert distinct_ngrams([np.array([1, 2, 1, 2])], 2) == pytest.approx(2 / 3)
    assert distinct_ngrams([np.arange(9)], 3) == 1


def test_own_texts_are_compared_with_real_ones(params, model, tokenizer, tokens):
    T = 31
    real_BT = np.stack([tokens[i * T : (i + 1) * T] for i in range(1, 9)])
    circles_BT = np.tile(real_BT[:, :3], 11)[:, :T]
    answer = explain_generation(
        LanguageModel(params, model, tokenizer), circles_BT, real_BT, suffix_array(tokens)
    )
    assert answer.real.longest_copy.value == T  # the real texts are training text
    assert answer.own.repetition.low > answer.real.repetition.high
    assert "it repeats itself more;" in answer.sentence()
    assert "nothing shows that later parts" in answer.sentence()  # the model is not trained
    assert "it copies less;" in answer.sentence()
    assert len(answer.samples) == len(answer.nearest) == 8
    same = explain_generation(
        LanguageModel(params, model, tokenizer), real_BT[:4], real_BT[4:], suffix_array(tokens)
    )
    assert same.sentence().count("a difference is not shown") == 3
    other = explain_generation(
        LanguageModel(params, model, tokenizer), circles_BT, real_BT, suffix_array(tokens), comparable=False
    )
    assert other.sentence().startswith("Real texts start within documents.")
    assert other.sentence().count("a difference is not shown") == 3
    with pytest.raises(ValueError, match="samples of 30 tokens"):
        explain_generation(
            LanguageModel(params, model, tokenizer), circles_BT[:, :30], real_BT, suffix_array(tokens)
        )


def test_real_texts_begin_documents_as_samples_do():
    tokens_N = np.array([1, 5, 6, 7, 8, 1, 9, 5, 6, 1, 4, 4, 4, 4, 1, 2])
    np.testing.assert_array_equal(document_beginnings(tokens_N, 1, 3, 9), [[5, 6, 7], [9, 5, 6], [4, 4, 4]])
    np.testing.assert_array_equal(document_beginnings(tokens_N, 1, 3, 2), [[5, 6, 7], [4, 4, 4]])
    assert document_beginnings(tokens_N, 3, 3, 9).shape == (0, 3)


COHERENT = Estimate(0.2, 0.1, 0.3)


def sentence(difference: Estimate, hangs: Estimate = COHERENT) -> str:
    """Return the sentence of a generation in which every measure has this difference."""
    zero = Estimate(0.0, -1.0, 1.0)
    measures = TextMeasures((), zero, zero, (1.0, 1.0, 1.0), zero, zero)
    return Generation((), (), (), measures, measures, Measures(*[difference] * 4), hangs).sentence()


@pytest.mark.parametrize(
    ("difference", "verdicts"),
    [
        (
            Estimate(2.0, 1.0, 3.0),
            ("it copies more;", "itself more;", "surprises it more", "hang together, more"),
        ),
        (
            Estimate(-2.0, -3.0, -1.0),
            ("it copies less;", "itself less;", "surprises it less", "together, less"),
        ),
        (
            Estimate(2.0, -0.1, 4.0),
            (
                "text 0.0: a difference is not shown",
                "0.0 %: a difference is not shown",
                "0.00: a difference is not shown",
                "whether more or less",
            ),
        ),
    ],
)
def test_every_verdict_has_three_outcomes(difference, verdicts):
    for words in verdicts:
        assert words in sentence(difference)
    assert "nothing shows" in sentence(difference, Estimate(0.2, -0.1, 0.5))
    assert "worse than those of other texts" in sentence(difference, Estimate(-0.2, -0.3, -0.1))
