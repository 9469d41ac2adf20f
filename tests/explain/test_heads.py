"""A previous-token head and an induction head, built by hand, are named and matter."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.functions import forward
from zerotollm.explain.ablation import MATTERS, ablate_heads, ablation, replace_head, with_output_biases
from zerotollm.explain.activations import (
    LanguageModel,
    even_windows,
    record_text,
    record_windows,
    row_length,
    score_windows,
)
from zerotollm.explain.attention import (
    NAMED,
    attention_maps,
    even_attention,
    explain_heads,
    head_statistics,
    repeated_random,
    window_statistics,
)
from zerotollm.explain.estimates import Estimate, mean_estimate
from zerotollm.model import layers
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.transformer import Transformer
from zerotollm.significance import holm

CONTEXT = 33


@pytest.fixture(scope="module")
def built(tokenizer):
    """Two layers of one head (Elhage et al. 2021, "A mathematical framework", induction heads).

    The first copies the previous token. The second attends to the position whose previous token is the current token,
    and copies its token. The stream holds four one-hot parts: token, position, previous token, prediction.
    """
    V = tokenizer.vocab_size
    P, D = CONTEXT, 3 * V + CONTEXT
    own, place = slice(0, V), slice(V, V + P)
    before, predicted = slice(V + P, 2 * V + P), slice(2 * V + P, D)
    config = resolve(
        TransformerConfig(
            vocab_size=V, num_layers=2, width=D, num_heads=1, ff_width=8, feed_forward="relu",
            position="learned", qk_norm=False,
        ),
        vocab_size=V, context=CONTEXT,
    )  # fmt: skip
    shapes = jax.eval_shape(
        lambda: Transformer(config).init(jax.random.key(0), {"inputs": jnp.zeros((1, 2), jnp.int32)})
    )
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes["params"])
    for name in ("attention_norm", "feed_forward_norm"):
        for i in range(2):
            params[f"layer_{i}"][name]["scale"] += 1
    params["final_norm"]["scale"] += 1
    params["embedding"][:, own] = np.eye(V)
    params["positions"][:, place] = np.eye(P)
    first, second = (params[f"layer_{i}"]["attention"] for i in range(2))
    first["query"][place, place] = np.eye(P)
    first["key"][place, place] = np.eye(P, k=1)  # the key of place s answers to the query of s + 1
    first["value"][own, own] = first["output"][own, before] = np.eye(V)
    second["query"][own, own] = np.eye(V)
    second["key"][before, own] = np.eye(V)
    second["value"][own, own] = second["output"][own, predicted] = np.eye(V)
    for attention in (first, second):
        attention["query"] *= 100  # hard attention
    params["head"][predicted] = np.eye(V)
    return config, params


@pytest.fixture(scope="module")
def ids(tokenizer):
    return np.arange(tokenizer.vocab_size)[300:]


@pytest.fixture(scope="module")
def repeated(tokenizer, ids):
    return repeated_random(ids, 16, 8, tokenizer.bos_id, seed=5)


def measured_heads(params, model, tokenizer, tokens_BT, ids):
    # A window has one token more, which is only a target.
    windows = record_windows(LanguageModel(params, model, tokenizer), np.pad(tokens_BT, ((0, 0), (0, 1))))
    return explain_heads(
        LanguageModel(params, model, tokenizer), tokens_BT, ids, (window.weights() for window in windows)
    )


@pytest.fixture(scope="module")
def heads(built, tokenizer, ids, repeated):
    return measured_heads(built[1], built[0], tokenizer, repeated, ids)


def test_heads_built_by_hand_are_named(heads):
    assert heads.named() == {(0, 0): "previous token", (1, 0): "induction"}
    assert heads.score_PLH.value[0, 0, 0] > 0.99
    assert heads.score_PLH.value[4, 1, 0] > 0.9
    assert "1 previous token, 1 induction" in heads.sentence()
    assert heads.repetition_gain.low > 1
    assert "predicted better the second time" in heads.sentence()
    assert heads.profile_LHT[0, 0, 1] > 0.99


def test_both_are_shown_to_matter(built, tokenizer, repeated):
    config, params = built
    answer = ablate_heads(LanguageModel(params, config, tokenizer), repeated)
    assert (answer.rise_LH.low > 0.5).all()
    assert "2 of 2 heads matter" in answer.sentence()


def test_a_model_that_learned_nothing_has_no_heads_to_name(params, model, tokenizer, tokens, ids):
    windows_BW = even_windows(tokens, 31, 8)
    answer = measured_heads(params, model, tokenizer, windows_BW, ids)
    assert answer.named() == {}
    assert "none is shown to have a role" in answer.sentence()
    assert "helps prediction is not shown" in answer.sentence()
    assert answer.score_PLH.value.shape == (5, 2, 2)
    nothing = ablate_heads(LanguageModel(params, model, tokenizer), windows_BW)
    assert "None of 4 heads is shown to matter" in nothing.sentence()


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (Estimate(0.55, 0.09, 1.01), "predicted better the second time, by 0.55 [0.09, 1.01]"),
        (Estimate(-0.55, -1.01, -0.09), "predicted worse the second time"),
        (Estimate(0.05, -0.4, 0.5), "helps prediction is not shown (gain 0.05 [-0.4, 0.5]"),
        (Estimate(0.002, 0.001, 0.003), "helps prediction is not shown"),  # fresh parameters give as much
    ],
)
def test_what_repetition_does_is_told_from_the_interval(heads, gain, said):
    assert said in replace(heads, repetition_gain=gain).sentence()


def test_of_many_heads_chance_names_none(heads):
    """144 heads without a role, whose shares are noise around the threshold; names are corrected for their number."""
    draw = np.random.default_rng(0)
    named = 0
    for _ in range(40):
        score = mean_estimate(draw.normal(NAMED, 0.05, (8, 5, 12, 12)), comparisons=5 * 144)
        named += bool(
            replace(heads, score_PLH=score, even_P=np.zeros(5), entropy_LH=np.ones((12, 12))).named()
        )
    assert named <= 6  # 2 are expected, half of those above


def test_attention_stays_in_the_document_where_training_kept_it_there(params, model, tokenizer, tokens):
    """The scores are those of `Transformer` with the segments of training, and differ from those without."""
    windows_BW = even_windows(tokens, 31, 4)
    windows_BW[:, [7, 19]] = tokenizer.bos_id
    segments_BT = np.cumsum(windows_BW[:, :-1] == tokenizer.bos_id, axis=1, dtype=np.int32)
    logits_BTV = forward(model)(params, windows_BW[:, :-1], segments_BT)
    logs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV[..., : model.vocab_size]))
    nats_BT = -np.take_along_axis(logs_BTV, windows_BW[:, 1:, None], -1)[..., 0]
    masked = score_windows(LanguageModel(params, model, tokenizer, tokenizer.bos_id), windows_BW)
    np.testing.assert_allclose(masked.nats_BT, nats_BT, atol=1e-4)
    assert (
        abs(score_windows(LanguageModel(params, model, tokenizer), windows_BW).nats_BT - nats_BT).max() > 1e-3
    )
    (first, *_) = record_windows(LanguageModel(params, model, tokenizer, tokenizer.bos_id), windows_BW)
    assert not first.weights()[:, :, 19:, :19].any()
    # The first token is that of the document, for a head that attends to it and for even attention.
    T = windows_BW.shape[1] - 1
    start_T = np.where(np.arange(T) >= 19, 19, np.where(np.arange(T) >= 7, 7, 0))
    weights = np.eye(T, dtype=np.float32)[start_T][None, None]
    answer = window_statistics(weights, windows_BW[0, :-1], np.zeros(T, bool), tokenizer.bos_id)
    assert answer.first_LH[0, 0] == 1
    assert answer.first_LH[1, 0] == pytest.approx(np.mean(1 / (np.arange(1, T) - start_T[1:] + 1)))


def test_texts_are_padded_to_the_next_power_of_two(model):
    """An imported model with a context of 32,768 does not compute all of it; weights grow with the square."""
    long = replace(model, max_length=32_768)
    assert [row_length(n, long) for n in (1, 512, 513, 1024, 1025, 20_000, 32_768)] == [
        512, 512, 1024, 1024, 2048, 32_768, 32_768,
    ]  # fmt: skip
    assert row_length(600, replace(model, max_length=700)) == 700
    assert row_length(5, model) == model.max_length == 32


def test_a_replaced_head_writes_a_constant(params, model):
    biased, biased_model = with_output_biases(params, model)
    layer = replace_head(biased["layer_0"], "attention", 1, np.arange(model.width), biased_model)
    output, C = layer["attention"]["output"], model.head_width
    assert not np.asarray(output[C:]).any()
    np.testing.assert_array_equal(output[:C], params["layer_0"]["attention"]["output"][:C])
    np.testing.assert_array_equal(layer["attention"]["output_bias"], np.arange(model.width))
    assert params["layer_0"]["attention"]["output"][C:].any()


def test_statistics_of_weights_that_are_known():
    tokens_T = np.array([7, 8, 7, 9])
    weights_TS = np.array(
        [[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0.5, 0.25, 0.25, 0], [0, 0.5, 0.5, 0]], np.float32
    )
    answer = head_statistics(weights_TS[None, None], tokens_T, tokens_T == 8, np.zeros(4, int))
    flat = [float(np.squeeze(x)) for x in answer[:4]]
    assert flat == pytest.approx([(0.25 + 0.25 + 0.5) / 3, 0.5 / 3, 0.75 / 3, (0.75 + 0.25 + 0.5) / 3])
    np.testing.assert_allclose(
        answer.profile_LHT[0, 0], [(1 + 0.75 + 0.25 + 0) / 4, (0.25 + 0.25 + 0.5) / 3, (0.5 + 0.5) / 2, 0]
    )
    even = head_statistics(even_attention(4), tokens_T, tokens_T == 8, np.zeros(4, int))
    assert float(np.squeeze(even.entropy_LH)) == pytest.approx(np.log([2, 3, 4]).mean())


def test_maps_say_where_the_last_token_looks(built, tokenizer, repeated):
    config, params = built
    weights_LHTS = record_text(LanguageModel(params, config, tokenizer), repeated[0]).weights_LHTS
    answer = attention_maps(weights_LHTS, tuple(str(i) for i in repeated[0]))
    assert answer.weights_LHTS.shape == (2, 1, CONTEXT, CONTEXT)
    assert answer.entropy_LHT[0, 0, -1] < 0.1
    assert "head 1 of layer" in answer.sentence()


@pytest.mark.parametrize("changed", [{}, {"num_kv_heads": 1, "biases": "qkv", "norm_position": "post"}])
def test_a_mean_ablation_writes_what_the_head_writes_on_average(
    model, tokenizer, tokens, monkeypatch, changed
):
    """Checked independently: a head's mixed values are replaced inside the model's own module."""
    model = replace(model, **changed)
    params = Transformer(model).init(jax.random.key(1), {"inputs": np.zeros((1, 4), np.int32)})["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * draw.standard_normal(x.shape, np.float32), params)
    windows_BW = even_windows(tokens, 31, 5)
    answer, mix_values = ablate_heads(LanguageModel(params, model, tokenizer), windows_BW), layers.mix_values

    def run(change) -> tuple[np.ndarray, list]:
        """Return the loss of each window, and the mixed values of each layer after `change`."""
        mixes = []

        def mixed(weights_BHTS, v_BKSC):
            mixes.append(change(len(mixes), mix_values(weights_BHTS, v_BKSC)))
            return mixes[-1]

        monkeypatch.setattr(layers, "mix_values", mixed)
        net = Transformer(model)  # not compiled: what is replaced must be called, and give numbers
        logits_BTV = net.apply({"params": params}, {"inputs": windows_BW[:, :-1]}).logits()
        log_p_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
        return -np.take_along_axis(log_p_BTV, windows_BW[:, 1:, None], -1)[..., 0].mean(1), mixes

    base_B, mixes = run(lambda layer, x_BHTC: x_BHTC)
    assert len(mixes) == 2
    for i, h in np.ndindex(2, 2):
        for rise_LH, value in ((answer.rise_LH, 0), (answer.mean_rise_LH, mixes[i][:, h].mean((0, 1)))):
            without_B, _ = run(
                lambda layer, x, i=i, h=h, value=value: x.at[:, h].set(value) if layer == i else x
            )
            assert rise_LH.value[i, h] == pytest.approx((without_B - base_B).mean(), abs=2e-5)
    assert answer.loss == pytest.approx(base_B.mean(), abs=1e-5)


def test_what_a_head_always_writes_is_worth_nothing_under_mean_ablation():
    """Rises of 24 windows: under zero ablation both heads matter, under mean ablation the second does not."""
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 24, 1, 2))
    zero_BLH, mean_BLH = noise[0] + [0.5, 0.3], noise[1] + [0.5, 0.0]
    answer = ablation(2.0, 24, "", np.stack([zero_BLH, mean_BLH], axis=1))
    assert answer.shown().matters_LH.tolist() == [[True, True]]
    assert answer.shown(mean=True).matters_LH.tolist() == [[True, False]]
    assert "2 of 2 heads matter on their own (zero ablation" in answer.sentence()
    assert "1 of 2 heads matters on its own if the head's mean output replaces it" in answer.sentence()
    harm = ablation(2.0, 24, "cross", np.stack([zero_BLH - 1, mean_BLH - 1], axis=1))
    assert "0 of 2" in harm.sentence()
    assert "and 2 do harm" in harm.sentence()


def test_verdicts_on_heads_are_holms():
    draw = np.random.default_rng(0)
    rises_BLH = draw.normal([0.02, 0.04, 0.01], 0.01, (20, 1, 3))
    tests = [stats.ttest_1samp(rises_BLH[:, 0, h], MATTERS, alternative="greater") for h in range(3)]
    answer = ablation(2.0, 20, "", np.stack([rises_BLH, rises_BLH], axis=1))
    np.testing.assert_allclose(answer.p_LH[0], holm([min(1, 2 * t.pvalue) for t in tests] * 2)[:3], rtol=1e-6)


@pytest.mark.parametrize("spread", [0.001, 0.02, 0.5])
def test_heads_of_noise_are_not_said_to_matter(spread):
    """At most 5 of 100 draws of 144 heads, under both ablations in 24 windows, show anything.

    With one head that is worth two standard deviations more than `MATTERS`, at least 95 draws show it.
    """
    said, planted = 0, 0
    for seed in range(100):
        rises_BALH = np.random.default_rng(seed).normal(0, spread, (2, 24, 12, 12)).swapaxes(0, 1)
        said += "None of 144 heads" not in ablation(3.0, 24, "", rises_BALH).sentence()
        rises_BALH[:, 0, 3, 4] += MATTERS + 2 * spread
        planted += ablation(3.0, 24, "", rises_BALH).shown().matters_LH[3, 4]
    print(f"nothing shown in {100 - said}, planted shown in {planted}")
    assert said <= 5
    assert planted >= 95
