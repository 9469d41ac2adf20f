"""Tokens are grouped as named, and the sentence claims learning only if a fall of the loss is shown."""

import jax
import numpy as np
import pytest

from zerotollm.explain.activations import LanguageModel, even_windows, score_windows
from zerotollm.explain.learning import (
    PART_NAMES,
    explain_learning,
    frequency_bands,
    grouped_means,
    measure_learning,
    word_parts,
)
from zerotollm.explain.words import readable_token, token_counts


def test_bands_follow_frequency():
    band_V = frequency_bands(np.arange(2000))
    assert [int((band_V == g).sum()) for g in range(4)] == [10, 90, 900, 1000]
    assert band_V[1999] == 0
    assert band_V[0] == 3


def test_parts_of_words(tokenizer, tokens):
    windows_BW = even_windows(tokens, 31, 4)
    for part_T, window_W in zip(word_parts(tokenizer, windows_BW), windows_BW, strict=True):
        for t in range(1, len(part_T)):
            text = readable_token(tokenizer, window_W[t + 1])
            assert (part_T[t] == 0) == (text[0] == " " and len(text) > 1 and text[1].isalpha())
            if PART_NAMES[part_T[t]].startswith("second"):
                assert part_T[t - 1] == 0


def test_means_of_groups():
    nats_BT, group_BT = np.array([[1.0, 2, 6], [3, 4, 8]]), np.array([[0, 0, 1], [0, 0, 1]])
    means = grouped_means(nats_BT, group_BT, 3)
    np.testing.assert_allclose(means.value, [2.5, 7, np.nan])
    assert means.low[0] >= 1.5
    assert means.high[0] <= 3.5


@pytest.fixture(scope="module")
def counts(tokenizer, tokens):
    return token_counts(tokens, tokenizer.vocab_size)


def test_equal_checkpoints_show_no_learning(params, model, tokenizer, tokens, counts):
    windows_BW = even_windows(tokens, 31, 8)
    answer = explain_learning(
        [(step, LanguageModel(params, model, tokenizer)) for step in (0, 5)], tokenizer, windows_BW, counts
    )
    expected = score_windows(LanguageModel(params, model, tokenizer), windows_BW).nats_BT.mean()
    assert answer.loss_Y.value[0] == answer.loss_Y.value[1] == pytest.approx(expected, rel=1e-5)
    assert answer.sentence().count("were learned is not shown") == 2
    assert "is shown at no checkpoint" in answer.sentence()
    assert answer.induction_attention_YLH.shape == (2, model.num_layers, model.num_heads)


def test_learned_and_worsened_bands_are_named(params, model, tokenizer, tokens, counts):
    """The head knows only the most frequent tokens, because the final state always has the same direction."""
    windows_BW = even_windows(tokens, 31, 8)
    best = np.argsort(-counts)[:10]
    # After the norm, every state is near (1, 0, 0, ...) x sqrt(D), so the first row of the head acts as a bias.
    trained = params | {
        "embedding": params["embedding"].at[:, 0].set(300.0),
        "head": jax.numpy.zeros_like(params["head"]).at[0, best].set(0.7),
    }
    answer = explain_learning(
        [(0, LanguageModel(params, model, tokenizer)), (9, LanguageModel(trained, model, tokenizer))],
        tokenizer,
        windows_BW,
        counts,
    )
    assert answer.band_YG.high[1, 0] < answer.band_YG.low[0, 0]
    assert answer.band_YG.value[1, 1] > answer.band_YG.value[0, 1]
    assert answer.fell_G.low[0] > 0 > answer.fell_G.high[1]
    assert "the 10 most frequent tokens were learned, half of the way by step 9" in answer.sentence()
    assert "ranks 11 to 100 became worse" in answer.sentence()


def test_fall_is_decided_by_the_paired_interval(tokenizer, tokens, counts):
    """Windows differ by a nat and each improves by a tenth: the intervals overlap, but the fall is certain."""
    windows_BW = even_windows(tokens, 31, 12)
    draw = np.random.default_rng(0)
    before_BT = draw.normal(3, 1, (12, 1)) + draw.normal(0, 0.05, (12, 31))
    after_BT = before_BT - 0.1 + draw.normal(0, 0.05, (12, 31))
    answer = measure_learning([(0, before_BT), (9, after_BT)], tokenizer, windows_BW, counts)
    assert answer.band_YG.low[0, 0] < answer.band_YG.high[1, 0]
    assert "the 10 most frequent tokens were learned" in answer.sentence()
    noise_BT = before_BT + draw.normal(0, 0.05, (12, 31))
    noise = measure_learning([(0, before_BT), (9, noise_BT)], tokenizer, windows_BW, counts)
    assert noise.sentence().count("were learned is not shown") == 2
