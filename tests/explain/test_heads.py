"""A previous-token head and an induction head, built by hand, are found and are shown to matter."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zerotollm.evaluation.statistics import holm
from zerotollm.explain.ablation import MATTERS, ablate_heads, ablation
from zerotollm.explain.attention import (
    attention_maps,
    even_attention,
    explain_heads,
    head_statistics,
    repeated_random,
)
from zerotollm.explain.forward import even_windows, look_inside, without_heads
from zerotollm.model import layers
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.transformer import Transformer

CONTEXT = 33


@pytest.fixture(scope="module")
def built(tokenizer):
    """Two layers of one head: the first copies the token before, the second looks for where the own token was that,
    and writes what stands there (Elhage et al. 2021, "A mathematical framework", induction heads).

    The stream holds four one-hot parts: own token, position, token before, and what is predicted.
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
    shapes = jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
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


@pytest.fixture(scope="module")
def heads(built, tokenizer, ids, repeated):
    return explain_heads(built[1], built[0], tokenizer, repeated, ids)


def test_heads_built_by_hand_are_named(heads):
    assert heads.named() == {(0, 0): "previous token", (1, 0): "induction"}
    assert heads.score_PLH.value[0, 0, 0] > 0.99
    assert heads.score_PLH.value[4, 1, 0] > 0.9
    assert "1 previous token, 1 induction" in heads.sentence()
    assert heads.repetition_gain.low > 1
    assert "predicted better" in heads.sentence()
    assert heads.profile_LHT[0, 0, 1] > 0.99


def test_both_are_shown_to_matter(built, repeated):
    config, params = built
    found = ablate_heads(params, config, repeated)
    assert (found.rise_LH.low > 0.5).all()
    assert "2 of 2 heads matter" in found.sentence()


def test_a_model_that_learned_nothing_has_no_heads_to_name(params, model, tokenizer, tokens, ids):
    windows_BW = even_windows(tokens, 31, 8)
    found = explain_heads(params, model, tokenizer, windows_BW, ids)
    assert found.named() == {}
    assert "none has a role" in found.sentence()
    assert "does not help" in found.sentence()
    assert found.score_PLH.value.shape == (5, 2, 2)
    nothing = ablate_heads(params, model, windows_BW)
    assert "None of 4 heads is shown to matter" in nothing.sentence()


def test_a_head_taken_out_writes_nothing(params, model, tokens):
    output = without_heads(params["layer_0"]["attention"], np.array([1, 0], np.float32), model)["output"]
    C = model.head_width
    assert not np.asarray(output[C:]).any()
    np.testing.assert_array_equal(output[:C], params["layer_0"]["attention"]["output"][:C])
    assert params["layer_0"]["attention"]["output"][C:].any()


def test_statistics_of_weights_that_are_known():
    tokens_T = np.array([7, 8, 7, 9])
    weights_TS = np.array(
        [[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0.5, 0.25, 0.25, 0], [0, 0.5, 0.5, 0]], np.float32
    )
    found = head_statistics(weights_TS[None, None], tokens_T, tokens_T == 8)
    flat = [float(np.squeeze(x)) for x in found[:4]]
    assert flat == pytest.approx([(0.25 + 0.25 + 0.5) / 3, 0.5 / 3, 0.75 / 3, (0.75 + 0.25 + 0.5) / 3])
    np.testing.assert_allclose(
        found.profile_LHT[0, 0], [(1 + 0.75 + 0.25 + 0) / 4, (0.25 + 0.25 + 0.5) / 3, (0.5 + 0.5) / 2, 0]
    )
    even = head_statistics(even_attention(4), tokens_T, tokens_T == 8)
    assert float(np.squeeze(even.entropy_LH)) == pytest.approx(np.log([2, 3, 4]).mean())


def test_maps_say_where_the_last_token_looks(built, tokenizer, repeated):
    config, params = built
    weights_LHTS = look_inside(params, config, repeated[0]).weights_LBHTS[:, 0]
    found = attention_maps(weights_LHTS, tuple(str(i) for i in repeated[0]))
    assert found.weights_LHTS.shape == (2, 1, CONTEXT, CONTEXT)
    assert found.entropy_LHT[0, 0, -1] < 0.1
    assert "head 1 of layer" in found.sentence()


@pytest.mark.parametrize("changed", [{}, {"num_kv_heads": 1, "biases": "qkv", "norm_position": "post"}])
def test_a_mean_ablation_writes_what_the_head_writes_on_average(model, tokens, monkeypatch, changed):
    """By another way: what attention mixes for a head is replaced in the model's own module."""
    model = replace(model, **changed)
    params = Transformer(model).init(jax.random.key(1), np.zeros((1, 4), np.int32))["params"]
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * draw.standard_normal(x.shape, np.float32), params)
    windows_BW = even_windows(tokens, 31, 5)
    found, mix_values = ablate_heads(params, model, windows_BW), layers.mix_values

    def run(change) -> tuple[np.ndarray, list]:
        """The loss of each window, and what was mixed, of each layer, where `change` turns it."""
        mixes = []

        def mixed(weights_BHTS, v_BKSC):
            mixes.append(change(len(mixes), mix_values(weights_BHTS, v_BKSC)))
            return mixes[-1]

        monkeypatch.setattr(layers, "mix_values", mixed)
        logits_BTV = Transformer(model).apply({"params": params}, windows_BW[:, :-1])
        log_p_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
        return -np.take_along_axis(log_p_BTV, windows_BW[:, 1:, None], -1)[..., 0].mean(1), mixes

    base_B, mixes = run(lambda layer, x_BHTC: x_BHTC)
    assert len(mixes) == 2
    for i, h in np.ndindex(2, 2):
        for rise_LH, value in ((found.rise_LH, 0), (found.mean_rise_LH, mixes[i][:, h].mean((0, 1)))):
            without_B, _ = run(
                lambda layer, x, i=i, h=h, value=value: x.at[:, h].set(value) if layer == i else x
            )
            assert rise_LH.value[i, h] == pytest.approx((without_B - base_B).mean(), abs=2e-5)
    assert found.loss == pytest.approx(base_B.mean(), abs=1e-5)


def test_what_a_head_always_writes_is_worth_nothing_under_mean_ablation():
    """Rises of 24 windows: under zero ablation both heads matter, under mean ablation the second does not."""
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 24, 1, 2))
    found = ablation(2.0, 24, "", noise[0] + [0.5, 0.3], noise[1] + [0.5, 0.0])
    assert found.shown().matters_LH.tolist() == [[True, True]]
    assert found.shown(mean=True).matters_LH.tolist() == [[True, False]]
    assert "2 of 2 heads matter on their own (zero ablation" in found.sentence()
    assert (
        "1 of 2 heads matters on its own where the head's mean output stands in its place" in found.sentence()
    )
    harm = ablation(2.0, 24, "cross", noise[0] - 0.5)
    assert harm.mean_rise_LH is None
    assert "0 of 2" in harm.sentence()
    assert "and 2 do harm" in harm.sentence()


def test_verdicts_on_heads_are_holms():
    draw = np.random.default_rng(0)
    rises_BLH = draw.normal([0.02, 0.04, 0.01], 0.01, (20, 1, 3))
    tests = [stats.ttest_1samp(rises_BLH[:, 0, h], MATTERS, alternative="greater") for h in range(3)]
    found = ablation(2.0, 20, "", rises_BLH)
    np.testing.assert_allclose(found.p_LH[0], holm([min(1, 2 * t.pvalue) for t in tests]), rtol=1e-6)


@pytest.mark.parametrize("spread", [0.001, 0.02, 0.5])
def test_heads_of_noise_are_not_said_to_matter(spread):
    """Of 100 draws of 144 heads under both ablations in 24 windows, at most 5 show anything; of as many with one head
    that is worth two standard deviations more than `MATTERS`, at least 95 show that one."""
    said, planted = 0, 0
    for seed in range(100):
        zero, mean = np.random.default_rng(seed).normal(0, spread, (2, 24, 12, 12))
        said += "None of 144 heads" not in ablation(3.0, 24, "", zero, mean).sentence()
        zero[:, 3, 4] += MATTERS + 2 * spread
        planted += ablation(3.0, 24, "", zero, mean).shown().matters_LH[3, 4]
    print(f"nothing shown in {100 - said}, planted shown in {planted}")
    assert said <= 5
    assert planted >= 95
