"""The prediction that is explained is the one that the model makes."""

import jax
import numpy as np
import pytest

from zerotollm.explain.calibration import calibration, loss_by_position
from zerotollm.explain.forward import Scores, even_windows, look_inside, score_windows
from zerotollm.explain.prediction import predict
from zerotollm.model.transformer import Transformer

SAID = "And the king of Jordan went"


@pytest.fixture(scope="module")
def seen(params, model, tokenizer):
    tokens_T = np.concatenate([[tokenizer.bos_id], tokenizer.encode(SAID)]).astype(np.int32)
    return look_inside(params, model, tokens_T)


def test_the_model_itself_is_looked_into(params, model, tokens, seen):
    """Block by block is the model itself."""
    tokens_BT = even_windows(tokens, 31, 1)
    inside = look_inside(params, model, tokens_BT[0])
    whole_BTV = jax.jit(Transformer(model).apply)({"params": params}, tokens_BT)
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
    np.testing.assert_allclose(found.probabilities_V, jax.nn.softmax(logits_V / 0.5), rtol=1e-4)
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
    assert falling.gain.value == pytest.approx(0.69, abs=0.1)


def test_scores_are_of_every_window(params, model, tokens):
    windows_BW = even_windows(tokens, 31, 11)
    scores = score_windows(params, windows_BW, model=model)
    alone = score_windows(params, windows_BW[[9] * 8], model=model)
    assert scores.nats_BT.shape == (11, 31)
    np.testing.assert_allclose(scores.nats_BT[9], alone.nats_BT[0], rtol=1e-5)
    # Nothing learned: as sure as chance, and nothing is claimed of heads that are taken away.
    assert scores.nats_BT.mean() == pytest.approx(np.log(model.vocab_size), abs=0.02)
