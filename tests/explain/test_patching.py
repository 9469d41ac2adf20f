"""Patching finds the head and the place that carry a difference, and nothing where nothing does."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from tests.functions import init_params
from zerotollm.errors import UsageError
from zerotollm.explain.ablation import with_output_biases
from zerotollm.explain.activations import LanguageModel
from zerotollm.explain.patching import (
    Effects,
    Patching,
    TokenPair,
    pair_effects,
    patch_texts,
    patching,
)
from zerotollm.model.config import TransformerConfig, resolve

PLACES = 16
L, H = 2, 2


@pytest.fixture(scope="module")
def planted(tokenizer):
    """Two layers of two heads. Head 1 of layer 1 writes the token before; head 2 of layer 2 looks for the place whose
    token before is the current token, and predicts the token there. The two other heads copy, and nobody reads it.

    The stream holds one-hot parts: token, position, token before, prediction, copy.
    """
    V = tokenizer.vocab_size
    D, P = 4 * V + PLACES, PLACES
    own, place, before = slice(0, V), slice(V, V + P), slice(V + P, 2 * V + P)
    predicted, copied = slice(2 * V + P, 3 * V + P), slice(3 * V + P, D)
    sizes = {"num_layers": L, "num_heads": H, "width": D, "head_width": V, "ff_width": 8}
    config = TransformerConfig(**sizes, feed_forward="relu", position="learned", qk_norm=False, vocab_size=V)
    config = resolve(config, vocab_size=V, context=P)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    for i in range(L):
        for name in ("attention_norm", "feed_forward_norm"):
            params[f"layer_{i}"][name]["scale"] += 1
    params["final_norm"]["scale"] += 1
    params["embedding"][:, own] = np.eye(V)
    params["positions"][:, place] = np.eye(P)
    head = [slice(0, V), slice(V, 2 * V)]
    first, second = (params[f"layer_{i}"]["attention"] for i in range(L))
    first["query"][place, :P] = first["query"][place, V : V + P] = 100 * np.eye(P)
    first["key"][place, :P] = np.eye(P, k=1)  # the key of place s answers to the query of s + 1
    first["key"][place, V : V + P] = np.eye(P)
    second["query"][own, head[0]] = second["query"][own, head[1]] = 100 * np.eye(V)
    second["key"][own, head[0]] = np.eye(V)
    second["key"][before, head[1]] = np.eye(V)
    for attention, writes in ((first, (before, copied)), (second, (copied, predicted))):
        for h in range(H):
            attention["value"][own, head[h]] = attention["output"][head[h], writes[h]] = np.eye(V)
    params["head"][predicted] = np.eye(V)
    return LanguageModel(*with_output_biases(params, config), tokenizer)


def induction_pair(seed: int, length: int = 7) -> TokenPair:
    """Return "a b ... a", after which b follows, and the same with another first token. Token 1 differs."""
    draw = np.random.default_rng(seed).permutation(np.arange(270, 380))[: length + 1]
    clean_T = np.array([1, *draw[: length - 2], draw[0]])
    corrupted_T = clean_T.copy()
    corrupted_T[1] = draw[-1]
    return TokenPair(clean_T, corrupted_T, (int(draw[1]), int(draw[2])))


@pytest.fixture(scope="module")
def means(planted):
    """Mean outputs of nothing that depends on the text: a little of every token."""
    return np.full((L, H, planted.config.width), 1e-3)


def answer_of(effects: list[Effects], first_changed: int = 1) -> Patching:
    T = effects[0].state_LT.shape[1]
    pieces, answers = tuple(f" {t}" for t in range(T)), ((" b", " c"),) * len(effects)
    return patching(
        effects, pieces=pieces, answers=answers, first_changed=first_changed, mean_of="these texts"
    )


@pytest.fixture(scope="module")
def found(planted, means):
    return answer_of([pair_effects(planted, induction_pair(seed), means) for seed in range(8)])


def test_it_finds_the_planted_heads_and_their_places(found):
    assert found.gap.low > 0.9
    expected_LT, expected_LHT = np.zeros((L, 7)), np.zeros((L, H, 7))
    expected_LT[0, 1] = expected_LT[1, 2] = 1  # the token, then the place that knows what was before it
    expected_LHT[0, 0, 2] = expected_LHT[1, 1, 6] = 1  # written after the token, read at the end
    np.testing.assert_allclose(found.share(found.state_LT.value), expected_LT, atol=0.02)
    np.testing.assert_allclose(found.share(found.head_LHT.value), expected_LHT, atol=0.02)
    np.testing.assert_allclose(found.share(found.head_LH.value), [[1, 0], [0, 1]], atol=0.02)
    assert [(first, last, token) for first, last, token, _ in found.route()] == [
        ("embedding", "embedding", " 1"),
        ("layer 1", "layer 1", " 2"),
    ]


def test_only_the_planted_heads_are_shown_to_matter(found):
    for effect in (found.head_LH, found.fall_LH):
        assert found.shown(effect).tolist() == [[True, False], [False, True]]
    assert (
        "Over 8 pairs, 2 heads are shown to restore more than 0.01 logits and 2 to lower" in found.sentence()
    )
    assert "at ' 1' (embedding, 100%), then at ' 2' (layer 1, 100%)" in found.sentence()


def test_one_pair_has_no_verdict(planted, means):
    answer = answer_of([pair_effects(planted, induction_pair(0), means)])
    assert not answer.shown(answer.head_LH).any()
    assert np.isinf(answer.head_LH.low).all()
    assert "One pair has no interval: that it is so in other sentences is not shown." in answer.sentence()


VARIANTS = {
    "qwen2": {"biases": "qkv", "qk_norm": False},
    "post": {"norm_position": "post", "norm": "layer", "position": "sinusoidal", "feed_forward": "gelu"},
    "gqa": {"num_kv_heads": 1, "biases": "all", "logit_soft_cap": 5.0, "key_width": 6, "nope_every": 2},
}


def random_model(name: str, tokenizer) -> LanguageModel:
    config = TransformerConfig(num_layers=2, width=32, num_heads=2, **VARIANTS[name])
    config = resolve(config, vocab_size=tokenizer.vocab_size, context=PLACES)
    noise = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: np.asarray(noise.normal(x.ndim == 1, 0.3, x.shape), np.float32), shapes)
    return LanguageModel(*with_output_biases(params, config), tokenizer)


@pytest.mark.parametrize("name", VARIANTS)
def test_texts_that_are_the_same_have_no_effects(name, tokenizer):
    lm = random_model(name, tokenizer)
    means_LHD = np.random.default_rng(0).normal(size=(2, 2, 32))
    pairs = [induction_pair(seed) for seed in range(3)]
    effects = [pair_effects(lm, pair._replace(corrupted_T=pair.clean_T), means_LHD) for pair in pairs]
    for effect in effects:
        assert abs(effect.clean - effect.corrupted) < 1e-5
        for restored in (effect.state_LT, effect.head_LHT, effect.head_LH):
            assert np.abs(restored).max() < 1e-4
    answer = answer_of(effects, first_changed=0)
    for effect in (answer.state_LT, answer.head_LHT, answer.head_LH, answer.fall_LH):
        assert not answer.shown(effect).any()
        assert not answer.share(effect.value).any()
    assert "a difference between them is not shown, so nothing is to be restored" in answer.sentence()


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_patched_is_what_the_clean_text_has(name, tokenizer):
    """Tokens before the change have no effect, and all states before the last block at once are the clean run."""
    lm = random_model(name, tokenizer)
    pair = induction_pair(4)
    effect = pair_effects(lm, pair, np.zeros((2, 2, 32)))
    for restored in (effect.state_LT[:, :1], effect.head_LHT[..., :1]):
        assert np.abs(restored).max() < 1e-4
    # Only the changed token's embedding differs, so restoring it restores all.
    assert effect.state_LT[0, 1] == pytest.approx(effect.clean - effect.corrupted, abs=1e-4)
    # The last token is read: heads of the last layer matter nowhere else.
    assert np.abs(effect.head_LHT[1, :, :-1]).max() < 1e-4
    np.testing.assert_allclose(effect.head_LHT[1, :, -1], effect.head_LH[1], atol=1e-4)
    assert np.abs(effect.head_LH).min() > 1e-4


def random_effects(draw: np.random.Generator, planted: float = 0.0) -> Effects:
    """Effects without a cause: a gap, and normal noise with `planted` added to one head."""
    T = 6
    head_LH = draw.normal(size=(L, H))
    head_LH[1, 0] += planted
    return Effects(
        10 + draw.normal(), draw.normal(), draw.normal(size=(L, T)), draw.normal(size=(L, H, T)), head_LH,
        draw.normal(size=(L, H)),
    )  # fmt: skip


def test_random_effects_are_not_shown_and_a_planted_one_is():
    def draws(planted: float) -> Iterator[Patching]:
        for seed in range(100):
            draw = np.random.default_rng(seed)
            yield answer_of([random_effects(draw, planted) for _ in range(8)], first_changed=0)

    effects = ("state_LT", "head_LHT", "head_LH", "fall_LH")
    nothing = sum(not any(answer.shown(getattr(answer, x)).any() for x in effects) for answer in draws(0.0))
    found = sum(
        answer.shown(answer.head_LH).tolist() == [[False, False], [True, False]] for answer in draws(8.0)
    )
    print(
        f"\n| patching: random effects over 8 pairs; a head's effect planted in them | {nothing} | {found} |"
    )
    assert nothing >= 95
    assert found >= 95


def test_random_answers_of_an_untrained_model_show_nothing(tokenizer, model, params):
    lm = LanguageModel(*with_output_biases(params, model), tokenizer)
    draw, shown = np.random.default_rng(0), 0
    for repeat in range(10):
        pairs = [induction_pair(8 * repeat + seed) for seed in range(8)]
        pairs = [pair._replace(answers=tuple(draw.integers(4, 300, 2).tolist())) for pair in pairs]
        answer = answer_of([pair_effects(lm, pair, np.zeros((2, 2, 32))) for pair in pairs])
        shown += any(
            answer.shown(effect).any() for effect in (answer.state_LT, answer.head_LH, answer.fall_LH)
        )
    assert shown <= 1


@pytest.fixture(scope="module")
def lm(tokenizer, model, params):
    return LanguageModel(params, model, tokenizer)


def test_texts_become_pairs(lm, tokens):
    answer = patch_texts(lm, [(" The king of Abia is", " The city of Abia is")], held_out_N=tokens)
    assert " king/ city" in answer.pieces
    assert answer.mean_of == "held-out text"
    assert answer.answers[0][0] != answer.answers[0][1]
    own = patch_texts(lm, [(" The king of Abia is", " The city of Abia is")], (" in", " said"))
    assert own.mean_of == "these texts"
    assert own.answers == ((" in", " said"),)


def test_the_figure_is_drawn(found, tmp_path):
    picture = found.show()
    assert [panel.title for panel in picture.panels] == [
        "Restoring one state at one token",
        "Restoring one head's output, as layer.head, at one token",
        "Restoring a head's output at all tokens",
        "Mean ablation after the clean text",
    ]
    assert picture.save(tmp_path / "patch.png").stat().st_size > 10_000
    page = found.save(tmp_path / "patch.html").read_text()
    assert "Over 8 pairs, 2 heads are shown" in page


@pytest.mark.parametrize(
    ("texts", "answers", "message"),
    [
        (
            [(" The king is", " The sea of Abia is")],
            None,
            "the texts have 3 and 5 tokens,  The| king| is and",
        ),
        ([(" The king", " The city")], (" in", " in"), "both answers start with the token ' in'"),
        ([(" The king", " The city")], ("", " in"), "an answer is empty"),
        ([(" The king is" * 20, " The city is" * 20)], None, "give at most 31, all are patched"),
        (
            [(" The king is", " The city is"), (" and The king is", " and The city is")],
            (" in", " said"),
            "pair 2 has 4 tokens and differs in token 3; pair 1 has 3 and differs in token 2",
        ),
    ],
)
def test_pairs_that_do_not_compare_are_refused(lm, texts, answers, message):
    with pytest.raises(UsageError) as error:
        patch_texts(lm, texts, answers)
    assert message in str(error.value)
