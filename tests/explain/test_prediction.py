"""The explained prediction is the prediction of the model."""

import jax
import numpy as np
import pytest

from tests.functions import forward
from zerotollm.explain.activations import LanguageModel, even_windows, record_text, score_windows, text_tokens
from zerotollm.explain.calibration import calibration, loss_by_position
from zerotollm.explain.estimates import mean_estimate
from zerotollm.explain.prediction import Prediction, Sampler, predict

TEXT = "And the king of Jordan went"


@pytest.fixture(scope="module")
def text_ids(model, tokenizer):
    return text_tokens(tokenizer, TEXT, model.max_length)[0]


@pytest.fixture(scope="module")
def recorded(params, model, tokenizer, text_ids):
    return record_text(LanguageModel(params, model, tokenizer), text_ids)


def test_activations_are_those_of_the_model(params, model, tokenizer, tokens):
    """The blocks one by one give the logits of `Transformer`."""
    (tokens_T,) = even_windows(tokens, 31, 1)
    activations = record_text(LanguageModel(params, model, tokenizer), tokens_T)
    logits_BTV = forward(model)(params, tokens_T[None])
    np.testing.assert_allclose(activations.logits_TV, logits_BTV[0], atol=1e-5)
    T = len(tokens_T)
    assert activations.residual_MTD.shape == (3, T, 32)
    assert activations.weights_LHTS.shape == (2, 2, T, T)
    np.testing.assert_allclose(activations.weights_LHTS.sum(-1), 1, rtol=1e-5)
    assert not np.triu(activations.weights_LHTS, 1).any()
    np.testing.assert_array_equal(activations.residual_MTD[0], params["embedding"][tokens_T])


def test_logits_are_the_sums_that_are_shown(params, model, tokenizer, text_ids, recorded):
    asked = []

    def draw(logits_V, before_T):
        asked.append(len(before_T))
        return int(logits_V.argmax())

    sampler = Sampler(0.5, lambda logits_V, before_T: np.asarray(jax.nn.softmax(logits_V / 0.5)), draw)
    answer = predict(LanguageModel(params, model, tokenizer), text_ids, recorded, sampler=sampler)
    logits_V = recorded.logits_TV[-1, : tokenizer.vocab_size]
    np.testing.assert_allclose(answer.products_KD.sum(1), logits_V[answer.best_K], rtol=1e-3, atol=1e-6)
    # The model's own probabilities, and those of the sampler at its temperature.
    np.testing.assert_allclose(answer.probabilities_V, jax.nn.softmax(logits_V), rtol=1e-4)
    np.testing.assert_allclose(answer.sampled_V, jax.nn.softmax(logits_V / 0.5), rtol=1e-4)
    assert answer.drawn == answer.best_K[0]
    assert asked == [len(answer.tokens_T)]
    # The last state is the model's output, so the lens ends at the model's own prediction.
    assert answer.lens_best_MT[-1, -1] == answer.best_K[0]
    model_nats = -jax.nn.log_softmax(recorded.logits_TV[:-1, : tokenizer.vocab_size], -1)
    np.testing.assert_allclose(
        answer.lens_nats_MT[-1],
        np.take_along_axis(np.asarray(model_nats), answer.tokens_T[1:, None], -1)[:, 0],
        rtol=1e-4,
    )
    assert repr(answer.best_pieces[0]) in answer.sentence()


def test_a_text_longer_than_the_context_is_cut_and_says_so(params, model, tokenizer, text_ids):
    long_T, cut = text_tokens(tokenizer, TEXT * 9, model.max_length)
    lm = LanguageModel(params, model, tokenizer)
    answer = predict(lm, long_T, record_text(lm, long_T), cut)
    assert answer.cut
    assert len(answer.tokens_T) == model.max_length
    assert not text_tokens(tokenizer, TEXT, len(text_ids))[1]


def test_the_sentence_gives_the_probabilities_of_the_model_and_of_the_sampler(
    params, model, tokenizer, text_ids, recorded
):
    """Two likely tokens at odds of 2 to 1 are at 4 to 1 where the temperature is 0.5."""
    logits_TV = np.full(recorded.logits_TV.shape, -100.0, np.float32)
    logits_TV[-1, 300:302] = np.log([2, 1])
    odds = recorded._replace(logits_TV=logits_TV)
    lm = LanguageModel(params, model, tokenizer)

    def sampled(probabilities) -> Prediction:
        return predict(
            lm, text_ids, odds, sampler=Sampler(0.5, probabilities, lambda logits_V, before_T: 300)
        )

    answer = sampled(lambda logits_V, before_T: np.asarray(jax.nn.softmax(logits_V / 0.5)))
    assert "with probability 0.67 (the sampler, at temperature 0.5, draws it with 0.80)" in answer.sentence()
    assert answer.entropy == pytest.approx(np.log2(3) - 2 / 3)
    alone = predict(lm, text_ids, odds)
    assert "with probability 0.67: its logit" in alone.sentence()
    only_V = np.eye(tokenizer.vocab_size)[300]
    assert "draws it with 1.00" in sampled(lambda *_: only_V).sentence()


def stated_and_right(power, size, seed):
    """Return probabilities that are exact at power 1 and too high at 0.5, outcomes, and the exact probabilities."""
    draw = np.random.default_rng(seed)
    truth_N = draw.random(size)
    return truth_N**power, draw.random(size) < truth_N, truth_N


@pytest.mark.parametrize(("power", "verdict"), [(0.5, "too sure"), (2.0, "not sure enough")])
def test_miscalibration_is_found_and_measured(power, verdict):
    stated_N, right_N, truth_N = stated_and_right(power, 20_000, 1)
    answer = calibration(stated_N, right_N)
    assert verdict in answer.sentence()
    assert answer.error == pytest.approx(abs(truth_N - stated_N).mean(), abs=0.02)


def test_too_sure_here_and_not_sure_enough_there_has_no_direction():
    """An accuracy of 60 % at 90 % and at 30 % confidence is miscalibrated, but right on average."""
    draw = np.random.default_rng(0)
    stated_N = np.tile([0.9, 0.3], 1000)
    answer = calibration(stated_N, draw.random(2000) < 0.6)
    assert answer.p_value < 0.05
    assert "whether it is too sure or not sure enough is not shown" in answer.sentence()


def test_the_direction_is_of_windows_and_small_errors_do_not_matter():
    """The interval is over windows, which differ; one over tokens would be far too narrow."""
    draw = np.random.default_rng(1)
    stated_BT = np.full((8, 500), 0.5)
    right_BT = draw.random((8, 500)) < np.linspace(0.1, 0.8, 8)[:, None]
    answer = calibration(stated_BT, right_BT)
    np.testing.assert_allclose(answer.excess, mean_estimate((stated_BT - right_BT).mean(1)), rtol=1e-6)
    assert "is not shown" in answer.sentence()
    fine = calibration(np.full(100_000, 0.5), draw.random(100_000) < 0.51)
    assert fine.p_value < 0.05
    assert "too small to matter" in fine.sentence()


def test_exact_probabilities_are_seldom_blamed():
    blamed = sum(calibration(*stated_and_right(1, 2000, seed)[:2]).p_value <= 0.05 for seed in range(40))
    assert blamed <= 6  # 2 are to be expected


def test_loss_by_position_shows_a_fall_only_where_there_is_one():
    draw = np.random.default_rng(0)
    flat_BT = draw.normal(3, 0.5, (24, 64))
    none = loss_by_position(flat_BT)
    assert list(none.first_Y[:4]) == [0, 1, 2, 4]
    assert none.last_Y[-1] == 63
    assert "no difference" in none.sentence()
    falling = loss_by_position(flat_BT - np.linspace(0, 1, 64))
    assert "falls" in falling.sentence()
    assert "worse" in loss_by_position(flat_BT + np.linspace(0, 1, 64)).sentence()
    steady = loss_by_position(flat_BT * 0 + np.linspace(0, 0.004, 64))
    assert "no difference in loss of more than 0.01" in steady.sentence()
    assert falling.gain.value == pytest.approx(0.69, abs=0.1)


def test_scores_are_of_every_window(params, model, tokenizer, tokens):
    windows_BW = even_windows(tokens, 31, 11)
    scores = score_windows(LanguageModel(params, model, tokenizer), windows_BW)
    alone = score_windows(LanguageModel(params, model, tokenizer), windows_BW[[9] * 8])
    assert scores.nats_BT.shape == (11, 31)
    np.testing.assert_allclose(scores.nats_BT[9], alone.nats_BT[0], rtol=1e-5)
    # Untrained, the model predicts a uniform distribution.
    assert scores.nats_BT.mean() == pytest.approx(np.log(model.vocab_size), abs=0.02)
