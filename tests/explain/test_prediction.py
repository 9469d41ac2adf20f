"""The prediction that is explained is the one that the model makes."""

import jax
import numpy as np
import pytest

from tests.functions import forward
from zerotollm.explain.activations import Scores, even_windows, look_inside, score_windows
from zerotollm.explain.calibration import calibration, loss_by_position
from zerotollm.explain.prediction import predict
from zerotollm.explain.statistics import mean_estimate

SAID = "And the king of Jordan went"


@pytest.fixture(scope="module")
def seen(params, model, tokenizer):
    tokens_T = np.concatenate([[tokenizer.bos_id], tokenizer.encode(SAID)]).astype(np.int32)
    return look_inside(params, model, tokens_T)


def test_the_model_itself_is_looked_into(params, model, tokens, seen):
    """Block by block is the model itself."""
    tokens_BT = even_windows(tokens, 31, 1)
    inside = look_inside(params, model, tokens_BT[0])
    whole_BTV = jax.jit(forward(model))(params, tokens_BT)
    np.testing.assert_allclose(inside.logits_BTV, whole_BTV, atol=1e-5)
    B, T = tokens_BT.shape
    assert inside.residual_MBTD.shape == (3, B, T, 32)
    weights_LBHTS = np.asarray(inside.weights_LBHTS)
    assert weights_LBHTS.shape == (2, B, 2, T, T)
    np.testing.assert_allclose(weights_LBHTS.sum(-1), 1, rtol=1e-5)
    assert not np.triu(weights_LBHTS, 1).any()
    np.testing.assert_array_equal(inside.residual_MBTD[0], params["embedding"][tokens_BT])


def test_logits_are_the_sums_that_are_shown(params, model, tokenizer, seen):
    asked = []

    def draw(logits_V, before):
        asked.append(before)
        return int(logits_V.argmax())

    found = predict(params, model, tokenizer, SAID, temperature=0.5, draw=draw, seen=seen)
    logits_V = np.asarray(seen.logits_BTV)[0, -1, : tokenizer.vocab_size]
    np.testing.assert_allclose(found.products_KD.sum(1), logits_V[found.best_K], rtol=1e-3, atol=1e-6)
    # The model's own probabilities; the sampler's, at its temperature, stand beside them.
    np.testing.assert_allclose(found.probabilities_V, jax.nn.softmax(logits_V), rtol=1e-4)
    np.testing.assert_allclose(found.sampled_V, jax.nn.softmax(logits_V / 0.5), rtol=1e-4)
    assert found.drawn == found.best_K[0]
    assert asked == [len(found.tokens_T)]
    # The last place of the stream is what the model reads, so the lens ends at the model's own prediction.
    assert found.lens_best_MT[-1, -1] == found.best_K[0]
    model_nats = -jax.nn.log_softmax(np.asarray(seen.logits_BTV)[0, :-1, : tokenizer.vocab_size], -1)
    np.testing.assert_allclose(
        found.lens_nats_MT[-1],
        np.take_along_axis(np.asarray(model_nats), found.tokens_T[1:, None], -1)[:, 0],
        rtol=1e-4,
    )
    assert repr(found.best_pieces[0]) in found.sentence()


def test_a_text_longer_than_the_context_is_cut_and_says_so(params, model, tokenizer):
    found = predict(params, model, tokenizer, SAID * 9)
    assert found.cut
    assert len(found.tokens_T) == model.max_length


def test_the_models_probability_is_told_and_the_samplers_beside_it(params, model, tokenizer, seen):
    """Two likely tokens at odds of 2 to 1 are at 4 to 1 where the temperature is 0.5."""
    logits_BTV = np.full(seen.logits_BTV.shape, -100.0, np.float32)
    logits_BTV[0, -1, 300:302] = np.log([2, 1])
    odds = seen._replace(logits_BTV=logits_BTV)
    found = predict(params, model, tokenizer, SAID, temperature=0.5, seen=odds)
    assert "with probability 0.67 (the sampler, at temperature 0.5, draws it with 0.80)" in found.sentence()
    assert found.entropy == pytest.approx(np.log2(3) - 2 / 3)
    alone = predict(params, model, tokenizer, SAID, seen=odds)
    assert "with probability 0.67: its logit" in alone.sentence()
    excluded = predict(
        params, model, tokenizer, SAID, sampled=lambda _: np.eye(tokenizer.vocab_size)[300], seen=odds
    )
    assert "draws it with 1.00" in excluded.sentence()


def stated_and_right(power, size, seed):
    """Probabilities that are exact at power 1; at 0.5 a root, which states more than the truth."""
    draw = np.random.default_rng(seed)
    truth_N = draw.random(size)
    return truth_N**power, draw.random(size) < truth_N, truth_N


@pytest.mark.parametrize(("power", "verdict"), [(0.5, "too sure"), (2.0, "not sure enough")])
def test_miscalibration_is_found_and_measured(power, verdict):
    stated_N, right_N, truth_N = stated_and_right(power, 20_000, 1)
    found = calibration(stated_N, right_N)
    assert verdict in found.sentence()
    assert found.error == pytest.approx(abs(truth_N - stated_N).mean(), abs=0.02)


def test_too_sure_here_and_not_sure_enough_there_has_no_direction():
    """Right 60 % of the time where it says 90 %, and 60 % where it says 30 %: wrong, and on average right."""
    draw = np.random.default_rng(0)
    stated_N = np.tile([0.9, 0.3], 1000)
    found = calibration(stated_N, draw.random(2000) < 0.6)
    assert found.p_value < 0.05
    assert "whether it is too sure or not sure enough is not shown" in found.sentence()


def test_the_direction_is_of_windows_and_small_errors_do_not_matter():
    """The interval is one over windows, which differ as wholes: one a token would be far too narrow."""
    draw = np.random.default_rng(1)
    stated_BT = np.full((8, 500), 0.5)
    right_BT = draw.random((8, 500)) < np.linspace(0.1, 0.8, 8)[:, None]
    found = calibration(stated_BT, right_BT)
    np.testing.assert_allclose(found.excess, mean_estimate((stated_BT - right_BT).mean(1)), rtol=1e-6)
    assert "is not shown" in found.sentence()
    fine = calibration(np.full(100_000, 0.5), draw.random(100_000) < 0.51)
    assert fine.p_value < 0.05
    assert "too small to matter" in fine.sentence()


def test_exact_probabilities_are_seldom_blamed():
    blamed = sum(calibration(*stated_and_right(1, 2000, seed)[:2]).p_value <= 0.05 for seed in range(40))
    assert blamed <= 6  # 2 are to be expected


def test_loss_by_position_shows_a_fall_only_where_there_is_one():
    draw = np.random.default_rng(0)
    flat_BT = draw.normal(3, 0.5, (24, 64))
    none = loss_by_position(Scores(flat_BT, *[None] * 2))
    assert list(none.first_Y[:4]) == [0, 1, 2, 4]
    assert none.last_Y[-1] == 63
    assert "no difference" in none.sentence()
    falling = loss_by_position(Scores(flat_BT - np.linspace(0, 1, 64), *[None] * 2))
    assert "falls" in falling.sentence()
    assert "worse" in loss_by_position(Scores(flat_BT + np.linspace(0, 1, 64), *[None] * 2)).sentence()
    steady = loss_by_position(Scores(flat_BT * 0 + np.linspace(0, 0.004, 64), *[None] * 2))
    assert "no difference in loss of more than 0.01" in steady.sentence()
    assert falling.gain.value == pytest.approx(0.69, abs=0.1)


def test_scores_are_of_every_window(params, model, tokens):
    windows_BW = even_windows(tokens, 31, 11)
    scores = score_windows(params, windows_BW, model=model)
    alone = score_windows(params, windows_BW[[9] * 8], model=model)
    assert scores.nats_BT.shape == (11, 31)
    np.testing.assert_allclose(scores.nats_BT[9], alone.nats_BT[0], rtol=1e-5)
    # Nothing learned: as sure as chance, and nothing is claimed of heads that are taken away.
    assert scores.nats_BT.mean() == pytest.approx(np.log(model.vocab_size), abs=0.02)
