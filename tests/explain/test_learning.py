"""Bands and parts of words are what they say, and a model that does not learn is not said to."""

import jax
import numpy as np
import pytest

from zerotollm.explain.activations import even_windows, score_windows
from zerotollm.explain.learning import (
    PART_NAMES,
    explain_learning,
    frequency_bands,
    grouped_means,
    measure_learning,
    word_parts,
)
from zerotollm.explain.words import shown, token_counts


def test_bands_follow_frequency():
    counts_V = np.arange(2000)
    band_V = frequency_bands(counts_V)
    assert [int((band_V == g).sum()) for g in range(4)] == [10, 90, 900, 1000]
    assert band_V[1999] == 0
    assert band_V[0] == 3


def test_parts_of_words(tokenizer, tokens):
    windows_BW = even_windows(tokens, 31, 4)
    part_BT = word_parts(tokenizer, windows_BW)
    for part, window in zip(part_BT, windows_BW, strict=True):
        for t in range(1, len(part)):
            text = shown(tokenizer, window[t + 1])
            assert (part[t] == 0) == (text[0] == " " and len(text) > 1 and text[1].isalpha())
            if PART_NAMES[part[t]].startswith("second"):
                assert part[t - 1] == 0


def test_means_of_groups():
    nats_BT, group_BT = np.array([[1.0, 2, 6], [3, 4, 8]]), np.array([[0, 0, 1], [0, 0, 1]])
    found = grouped_means(nats_BT, group_BT, 3)
    np.testing.assert_allclose(found.value, [2.5, 7, np.nan])
    assert found.low[0] >= 1.5
    assert found.high[0] <= 3.5


@pytest.fixture(scope="module")
def counts(tokenizer, tokens):
    return token_counts(tokens, tokenizer.vocab_size)


def test_no_learning_is_claimed_where_nothing_changed(params, model, tokenizer, tokens, counts):
    windows_BW = even_windows(tokens, 31, 8)
    found = explain_learning([(0, params), (5, params)], model, tokenizer, windows_BW, counts)
    assert (
        found.loss_Y.value[0]
        == found.loss_Y.value[1]
        == pytest.approx(score_windows(params, windows_BW, model=model).nats_BT.mean(), rel=1e-5)
    )
    assert found.sentence().count("were learned is not shown") == 2
    assert "is shown at none of the checkpoints" in found.sentence()
    assert found.induction_attention_YLH.shape == (2, model.num_layers, model.num_heads)


def test_what_is_learned_is_said(params, model, tokenizer, tokens, counts):
    """A head that knows nothing but the most frequent tokens, by a final state that always has one direction."""
    windows_BW = even_windows(tokens, 31, 8)
    best = np.argsort(-counts)[:10]
    knows = dict(params)
    # Every state is near (1, 0, 0, ...) x sqrt(D) after the norm, whose column then is a bias.
    knows["embedding"] = params["embedding"].at[:, 0].set(300.0)
    knows["head"] = jax.numpy.zeros_like(params["head"]).at[0, best].set(0.7)
    found = explain_learning([(0, params), (9, knows)], model, tokenizer, windows_BW, counts)
    assert found.band_YG.high[1, 0] < found.band_YG.low[0, 0]
    assert found.band_YG.value[1, 1] > found.band_YG.value[0, 1]
    assert found.fell_G.low[0] > 0 > found.fell_G.high[1]
    assert "the 10 most frequent tokens were learned, half of the way by step 9" in found.sentence()
    assert "ranks 11 to 100 became worse" in found.sentence()


def test_a_fall_is_told_from_its_own_interval(params, model, tokenizer, tokens, counts):
    """Windows differ by a nat, and each becomes better by a tenth: intervals overlap, and the fall is certain."""
    windows_BW = even_windows(tokens, 31, 12)
    draw = np.random.default_rng(0)
    before_BT = draw.normal(3, 1, (12, 1)) + draw.normal(0, 0.05, (12, 31))
    after_BT = before_BT - 0.1 + draw.normal(0, 0.05, (12, 31))
    found = measure_learning([(0, before_BT), (9, after_BT)], tokenizer, windows_BW, counts)
    assert found.band_YG.low[0, 0] < found.band_YG.high[1, 0]
    assert "the 10 most frequent tokens were learned" in found.sentence()
    noise = measure_learning(
        [(0, before_BT), (9, before_BT + draw.normal(0, 0.05, (12, 31)))], tokenizer, windows_BW, counts
    )
    assert noise.sentence().count("were learned is not shown") == 2
