"""Planted geometry and planted similarity are found; noise gives nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from zerotollm.explain.embeddings import closest_by_chance, explain_embeddings, geometry
from zerotollm.explain.meaning import count_usage, explain_meaning
from zerotollm.explain.statistics import Estimate
from zerotollm.explain.words import token_counts


def cloud(dimensions, noise=0.0, N=600, D=40, seed=0):
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((D, D)))[0][:dimensions]
    return draw.standard_normal((N, dimensions)) @ basis + noise * draw.standard_normal((N, D)) + 5


@pytest.mark.parametrize("dimensions", [1, 3, 12])
def test_a_known_dimension_is_found(dimensions):
    found = geometry(cloud(dimensions, noise=0.01))
    assert found.participation.value == pytest.approx(dimensions, rel=0.05)
    assert found.participation.low <= dimensions * 1.02
    assert ("3D cloud" in found.sentence()) == (dimensions == 3)
    assert ("2D cloud" in found.sentence()) == (dimensions == 1)


def test_random_vectors_are_said_to_be_as_good_as_random():
    found = geometry(np.random.default_rng(3).standard_normal((600, 40)))
    assert found.participation.low <= found.chance_participation <= found.participation.high + 2
    assert "almost nothing" in found.sentence()


def test_neighbours_are_found_and_chance_is_not(tokenizer, tokens):
    counts_V = token_counts(tokens, tokenizer.vocab_size)
    common = np.argsort(-counts_V)[:3]
    table_VD = np.random.default_rng(0).standard_normal((tokenizer.vocab_size, 64))
    noise = explain_embeddings(table_VD, tokenizer, counts_V, common)
    assert "No token asked for is shown to lie closer to another than chance" in noise.sentence()
    assert noise.map_N3.shape == (len(noise.map_pieces), 3)
    table_VD[common[0]] = table_VD[common[1]] + 0.1 * table_VD[common[0]]
    planted = explain_embeddings(table_VD, tokenizer, counts_V, common)
    (pair,) = [n for n in planted.neighbours if n.id == common[0]]
    assert pair.ids_K[0] == common[1]
    assert pair.cosine_K[0] > 0.9 > pair.chance


def independent(seed, N=300, D=32):
    """Vectors that have nothing to do with each other, in a few wide and many narrow dimensions, as embeddings are."""
    x_ND = np.random.default_rng(seed).standard_normal((N, D)) / np.arange(1, D + 1)
    return x_ND - x_ND.mean(0)


def closest(x_ND, asked):
    """The largest cosine of one of the first vectors to any other."""
    x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    cosine_AN = x_ND[:asked] @ x_ND.T - 2 * np.eye(asked, len(x_ND))
    return cosine_AN.max(1)


def test_independent_vectors_have_no_neighbours():
    """Of 100 tables, at most 5 have any of 70 tokens said to be close; by random directions most tokens are. Where one
    is put beside another, it is said."""
    said, planted = 0, 0
    for seed in range(100):
        x_ND = independent(seed)
        bound = closest_by_chance(x_ND, 70)
        said += (closest(x_ND, 70) > bound).any()
        x_ND[0] = x_ND[200] + 0.002 * np.random.default_rng(seed).standard_normal(x_ND.shape[1])
        planted += closest(x_ND, 70)[0] > closest_by_chance(x_ND, 70)
    print(f"nothing shown in {100 - said}, planted shown in {planted}")
    assert said <= 5
    assert planted >= 95
    isotropic = stats.norm.ppf(1 - 0.05 / (300 * 70)) / np.sqrt(32)
    assert (closest(independent(0), 70) > isotropic).mean() > 0.5


def test_the_bound_is_that_of_as_many_tables_drawn_anew():
    drawn = np.sort([closest(independent(seed), 5).max() for seed in range(1000, 1400)])
    bounds = [closest_by_chance(independent(seed), 5) for seed in range(10)]
    assert np.mean(bounds) == pytest.approx(np.quantile(drawn, 0.95), abs=0.01)


@pytest.fixture(scope="module")
def usage(tokenizer, tokens):
    return count_usage(tokens, tokenizer)


def test_sentences_and_neighbours_are_counted(usage, tokenizer, tokens):
    place = {piece: i for i, piece in enumerate(usage.pieces)}
    went, to, the = (place[f" {w}"] for w in ("went", "to", "the"))
    assert usage.together_NN[went, to] > 0
    np.testing.assert_allclose(usage.together_NN, usage.together_NN.T)
    np.testing.assert_allclose(usage.contexts_NN.diagonal(), 1)
    assert usage.contexts_NN[went, to] < 0.5
    # Places stand in the same frame, and never beside each other.
    if " sea" in place and " river" in place:
        assert usage.contexts_NN[place[" sea"], place[" river"]] > usage.contexts_NN[place[" sea"], the]


def embedding_like(similar_NN, ids_N, V, noise):
    """Vectors whose cosines are about a given matrix."""
    values, vectors = np.linalg.eigh(similar_NN)
    x_ND = vectors * np.sqrt(np.maximum(values, 0))
    draw = np.random.default_rng(0)
    table_VD = draw.standard_normal((V, x_ND.shape[1]))
    table_VD[ids_N] = x_ND + noise * draw.standard_normal(x_ND.shape) / x_ND.shape[1] ** 0.5
    return table_VD


def test_the_planted_cause_is_named_and_noise_has_none(usage, tokenizer):
    V, N = tokenizer.vocab_size, len(usage.ids_N)
    noise_VD = np.random.default_rng(5).standard_normal((V, 30))
    by_context = embedding_like(usage.contexts_NN, usage.ids_N, V, 0.3)
    by_sentence = embedding_like(usage.together_NN, usage.ids_N, V, 0.3)
    found = explain_meaning([(0, noise_VD), (10, by_context)], usage)
    assert found.cosine_NN.shape == (N, N)
    assert found.contexts[0].low < 0.1
    assert "shared contexts, more than meeting" in found.sentence()
    assert "At step 0 these were" in found.sentence()
    assert "meeting in a sentence, more than" in explain_meaning([(1, by_sentence)], usage).sentence()


def test_noise_is_seldom_taken_for_meaning(usage, tokenizer):
    tables = [(i, np.random.default_rng(i).standard_normal((tokenizer.vocab_size, 30))) for i in range(20)]
    found = explain_meaning(tables, usage, draws=60)
    assert (found.p_contexts_Y <= 0.05).sum() <= 4
    assert (found.p_together_Y <= 0.05).sum() <= 4


def test_a_verdict_on_meaning_is_corrected_for_both_questions_and_names_only_what_is_shown(usage):
    """Of 100 tables of noise, at most 5 are said to mean anything; of tables made of contexts, at least 95."""
    V = int(usage.ids_N.max()) + 1
    tables = [(seed, np.random.default_rng(seed).standard_normal((V, 30))) for seed in range(100)]
    made = embedding_like(usage.contexts_NN, usage.ids_N, V, 0.0)
    for seed in range(100, 200):
        noise_VD = np.random.default_rng(seed).standard_normal(made.shape)
        tables.append((seed, made + 0.5 * noise_VD / made.shape[1] ** 0.5))
    found = explain_meaning(tables, usage, draws=99)
    said = [
        "neither is shown to be more than chance"
        not in replace(
            found,
            **{
                name: getattr(found, name)[seed : seed + 1] for name in ("together", "contexts", "difference")
            },
            **{
                name: getattr(found, name)[seed : seed + 1]
                for name in ("p_together_Y", "p_contexts_Y", "steps_Y")
            },
        ).sentence()
        for seed in range(200)
    ]
    print(f"nothing shown in {100 - sum(said[:100])}, planted shown in {sum(said[100:])}")
    assert sum(said[:100]) <= 5
    assert sum(said[100:]) >= 95
    # Vectors that turn away from each other where words meet: contexts are not shown, though they are "more".
    away = replace(
        found,
        contexts=(Estimate(0.01, -0.05, 0.07),),
        together=(Estimate(-0.4, -0.5, -0.3),),
        difference=(Estimate(0.41, 0.3, 0.5),),
        p_contexts_Y=np.array([0.7]),
        p_together_Y=np.array([0.005]),
    )
    assert "neither is shown to be more than chance" in away.sentence()
