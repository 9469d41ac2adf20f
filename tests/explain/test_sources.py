"""Planted copies are found with their places; the same kind of text without a copy is not called one."""

import numpy as np
import pytest

from zerotollm.data.tokens.suffix_array import suffix_array
from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.estimates import Estimate
from zerotollm.explain.memorization import Memorization, explain_memorization, measure_memorization
from zerotollm.explain.sources import Documents, explain_sources, longest_spans, split_into_spans
from zerotollm.explain.words import token_counts

DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def texts(tokenizer):
    """Tokens of random text to train on, and of held-out text."""
    ids = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i).strip()]
    return DRAW.choice(ids, 5000), DRAW.choice(ids, 3000)


def test_spans_take_the_longest_match_first():
    assert split_into_spans(np.array([2, 5, 4, 3, 2, 1, 3, 2, 1])) == [(0, 1), (1, 5), (6, 3)]
    assert split_into_spans(np.array([0, 1, 0])) == [(1, 1)]
    assert split_into_spans(np.zeros(0, int)) == []
    # A match that runs into a longer one is cut there.
    assert split_into_spans(np.array([3, 2, 9, 8, 7, 6, 5, 4, 3, 2, 1])) == [(0, 2), (2, 9)]


def test_a_planted_copy_is_found_with_its_place_and_document(texts, tokenizer):
    train_N, held_out_N = texts
    text_T = np.concatenate([held_out_N[:20], train_N[1000:1012], held_out_N[20:30]])
    documents = Documents(np.array([0, 900, 2000]), ("first", "second", "third"))
    answer = explain_sources(text_T, suffix_array(train_N), held_out_N[100:], tokenizer, documents)
    span = answer.longest()
    assert (span.start, span.length, span.occurrences) == (20, 12, 1)
    assert (span.passages[0].position, span.passages[0].document) == (1000, "second")
    assert span.p_value <= 0.025
    assert "12 of its 42 tokens and occurs there once, in second" in answer.sentence()
    assert "is rare without copying" in answer.sentence()
    covered = sorted(i for s in answer.spans for i in range(s.start, s.start + s.length))
    assert covered == [i for i in range(42) if i in covered]
    assert answer.longest_T[20] == 12
    assert next(panel.title for panel in answer.show().panels) == "Spans that are in the training text"


def test_the_passage_most_like_the_text_comes_first(texts, tokenizer):
    train_N, held_out_N = texts
    train_N = train_N.copy()
    for position in (500, 1500, 2500):
        train_N[position : position + 6] = held_out_N[10:16]
    train_N[1510:1514] = held_out_N[20:24]  # near the second place stands what is near the span in the text
    text_T = np.concatenate([held_out_N[8:16], DRAW.permutation(held_out_N[18:26])])
    answer = explain_sources(text_T, suffix_array(train_N), held_out_N[100:], tokenizer)
    span = max(answer.spans, key=lambda s: s.length)
    assert span.occurrences == 3
    assert span.passages[0].position == 1500
    assert span.passages[0].likeness > span.passages[1].likeness


def test_passages_stay_within_their_document(texts, tokenizer):
    train_N, _ = texts
    documents = Documents(np.array([0, 1000, 1006]), ())
    answer = explain_sources(train_N[1000:1006], suffix_array(train_N), train_N[:0], tokenizer, documents)
    (passage,) = answer.longest().passages
    assert (passage.before, passage.after, passage.document) == ("", "", "document 2")
    assert "is not shown, since held-out text is too short" in answer.sentence()


def test_a_text_without_any_token_of_the_training_text(tokenizer, texts):
    train_N = np.full(100, texts[0][0])
    answer = explain_sources(np.array([texts[0][0] + 1] * 3), suffix_array(train_N), texts[1], tokenizer)
    assert answer.spans == ()
    assert answer.sentence() == "No token of the text is in the training text."
    assert answer.show().panels


def test_longest_spans_do_not_run_into_the_next_text():
    train = suffix_array(np.arange(20))
    assert longest_spans(np.array([[3, 4, 5], [6, 7, 9], [30, 30, 31]]), train).tolist() == [3, 2, 0]


def test_what_one_window_saw_is_told_from_what_all_share(params, model, tokenizer, tokens):
    answer = explain_memorization(
        LanguageModel(params, model, tokenizer),
        tokens[:1000],
        tokens[1000:],
        token_counts(tokens, model.vocab_size),
    )
    assert "that it memorized is not shown" in answer.sentence()  # the model is not trained
    assert "it is worse than token frequencies" in answer.sentence()
    assert answer.show().panels


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (Estimate(0.3, 0.1, 0.5), "is what it memorized"),
        (Estimate(-0.3, -0.5, -0.1), "held-out text is easier for it, by 0.3 [0.1, 0.5]"),
        (Estimate(0.3, -0.1, 0.7), "that it memorized is not shown"),
    ],
)
def test_the_verdict_on_memorizing_has_three_outcomes(gap, words):
    other = Estimate(1.0, 0.5, 1.5)
    assert words in Memorization(other, other, gap, other, 3.0, 8).sentence()
    assert words in Memorization(other, other, gap, Estimate(0.0, -1, 1), 3.0, 8).sentence()


def test_memorization_is_the_difference_of_the_means():
    draw = np.random.default_rng(1)
    answer = measure_memorization(draw.normal(2, 0.1, 50), draw.normal(2.5, 0.1, 50), draw.normal(4, 0.1, 50))
    assert answer.gap.value == pytest.approx(0.5, abs=0.1)
    assert answer.gap.low > 0.3
    assert answer.learned.value == pytest.approx(1.5, abs=0.1)
