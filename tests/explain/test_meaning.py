"""Planted geometry and planted similarity are found, and noise shows nothing."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from zerotollm.explain.embeddings import closest_by_chance, explain_embeddings, geometry
from zerotollm.explain.estimates import Estimate
from zerotollm.explain.meaning import count_usage, explain_meaning
from zerotollm.explain.words import token_counts


@pytest.mark.parametrize("dimensions", [1, 3, 12])
def test_dimension_of_a_planted_cloud(dimensions):
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.standard_normal((40, 40)))[0][:dimensions]
    cloud_ND = draw.standard_normal((600, dimensions)) @ basis + 0.01 * draw.standard_normal((600, 40)) + 5
    answer = geometry(cloud_ND)
    assert answer.participation.value == pytest.approx(dimensions, rel=0.05)
    assert answer.participation.low <= dimensions * 1.02
    assert ("3D cloud" in answer.sentence()) == (dimensions == 3)
    assert ("2D cloud" in answer.sentence()) == (dimensions == 1)


def test_geometry_of_random_vectors_is_that_of_chance():
    answer = geometry(np.random.default_rng(3).standard_normal((600, 40)))
    assert answer.participation.low <= answer.chance_participation <= answer.participation.high + 2
    assert "almost nothing" in answer.sentence()


def test_planted_neighbours_are_found(tokenizer, tokens):
    counts_V = token_counts(tokens, tokenizer.vocab_size)
    common = np.argsort(-counts_V)[:3]
    table_VD = np.random.default_rng(0).standard_normal((tokenizer.vocab_size, 64))
    noise = explain_embeddings(table_VD, tokenizer, counts_V, common)
    assert "No token asked for is shown to be closer to another than expected by chance" in noise.sentence()
    assert noise.map_N3.shape == (len(noise.map_pieces), 3)
    table_VD[common[0]] = table_VD[common[1]] + 0.1 * table_VD[common[0]]
    planted = explain_embeddings(table_VD, tokenizer, counts_V, common)
    (pair,) = [n for n in planted.neighbours if n.id == common[0]]
    assert pair.ids_K[0] == common[1]
    assert pair.cosine_K[0] > 0.9 > pair.chance


def test_only_the_tokens_measured_are_copied_out_of_a_large_table(tokenizer, tokens):
    """A vocabulary of 152,000 ids and 1,024 features takes 1.2 GB in float64."""
    table_VD = np.zeros((200_000, 64), np.float32)
    table_VD[: tokenizer.vocab_size] = np.random.default_rng(0).standard_normal((tokenizer.vocab_size, 64))
    tracemalloc.start()
    explain_embeddings(table_VD, tokenizer, token_counts(tokens, tokenizer.vocab_size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table_VD.nbytes


def independent(seed, N=300, D=32):
    """Return independent vectors in a few wide and many narrow dimensions, as embeddings are."""
    x_ND = np.random.default_rng(seed).standard_normal((N, D)) / np.arange(1, D + 1)
    return x_ND - x_ND.mean(0)


def closest(x_ND, asked):
    """Return the largest cosine of each of the first vectors to any other."""
    x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    cosine_AN = x_ND[:asked] @ x_ND.T - 2 * np.eye(asked, len(x_ND))
    return cosine_AN.max(1)


def test_independent_vectors_have_no_neighbours():
    """In at most 5 of 100 tables is any of 70 tokens called close; in at least 95 a planted neighbour is.

    With random directions as the null model, most tokens would be called close.
    """
    shown, planted = 0, 0
    for seed in range(100):
        x_ND = independent(seed)
        shown += (closest(x_ND, 70) > closest_by_chance(x_ND, 70)).any()
        x_ND[0] = x_ND[200] + 0.002 * np.random.default_rng(seed).standard_normal(x_ND.shape[1])
        planted += closest(x_ND, 70)[0] > closest_by_chance(x_ND, 70)
    print(f"nothing shown in {100 - shown}, planted shown in {planted}")
    assert shown <= 5
    assert planted >= 95
    isotropic = stats.norm.ppf(1 - 0.05 / (300 * 70)) / np.sqrt(32)
    assert (closest(independent(0), 70) > isotropic).mean() > 0.5


def test_bound_is_that_of_new_independent_tables():
    drawn = np.sort([closest(independent(seed), 5).max() for seed in range(1000, 1400)])
    bounds = [closest_by_chance(independent(seed), 5) for seed in range(10)]
    assert np.mean(bounds) == pytest.approx(np.quantile(drawn, 0.95), abs=0.01)


@pytest.fixture(scope="module")
def usage(tokenizer, tokens):
    return count_usage(tokens, tokenizer)


def test_sentences_and_neighbours_are_counted(usage):
    place = {piece: i for i, piece in enumerate(usage.pieces)}
    went, to, the = (place[f" {w}"] for w in ("went", "to", "the"))
    assert usage.together_NN[went, to] > 0
    np.testing.assert_allclose(usage.together_NN, usage.together_NN.T)
    np.testing.assert_allclose(usage.contexts_NN.diagonal(), 1)
    assert usage.contexts_NN[went, to] < 0.5
    # Names of places have the same neighbours, but never stand beside each other.
    if " sea" in place and " river" in place:
        assert usage.contexts_NN[place[" sea"], place[" river"]] > usage.contexts_NN[place[" sea"], the]


def embedding_like(similar_NN, ids_N, V, noise):
    """Return vectors whose cosines are approximately a given matrix."""
    values, vectors = np.linalg.eigh(similar_NN)
    x_ND = vectors * np.sqrt(np.maximum(values, 0))
    draw = np.random.default_rng(0)
    table_VD = draw.standard_normal((V, x_ND.shape[1]))
    table_VD[ids_N] = x_ND + noise * draw.standard_normal(x_ND.shape) / x_ND.shape[1] ** 0.5
    return table_VD


def test_planted_cause_is_named(usage, tokenizer):
    V, N = tokenizer.vocab_size, len(usage.ids_N)
    noise_VD = np.random.default_rng(5).standard_normal((V, 30))
    by_context = embedding_like(usage.contexts_NN, usage.ids_N, V, 0.3)
    by_sentence = embedding_like(usage.together_NN, usage.ids_N, V, 0.3)
    answer = explain_meaning([(0, noise_VD), (10, by_context)], usage)
    assert answer.cosine_NN.shape == (N, N)
    assert answer.contexts[0].low < 0.1
    assert "shared contexts count more than" in answer.sentence()
    assert "At step 0 these were" in answer.sentence()
    assert "same sentence counts more than" in explain_meaning([(1, by_sentence)], usage).sentence()


def test_verdict_is_corrected_for_both_questions(usage):
    """At most 5 of 100 tables of noise are said to have meaning, and at least 95 of those made of contexts."""
    V = int(usage.ids_N.max()) + 1
    tables = [(seed, np.random.default_rng(seed).standard_normal((V, 30))) for seed in range(100)]
    planted_VD = embedding_like(usage.contexts_NN, usage.ids_N, V, 0.0)
    for seed in range(100, 200):
        noise_VD = np.random.default_rng(seed).standard_normal(planted_VD.shape)
        tables.append((seed, planted_VD + 0.5 * noise_VD / planted_VD.shape[1] ** 0.5))
    answer = explain_meaning(tables, usage, draws=99)
    for p_Y in (answer.p_contexts_Y, answer.p_together_Y):
        assert (p_Y[:100] <= 0.05).sum() <= 10
    fields = ("together", "contexts", "difference", "p_together_Y", "p_contexts_Y", "steps_Y")
    shown = [
        "neither is shown to be more than chance"
        not in replace(answer, **{name: getattr(answer, name)[y : y + 1] for name in fields}).sentence()
        for y in range(200)
    ]
    print(f"nothing shown in {100 - sum(shown[:100])}, planted shown in {sum(shown[100:])}")
    assert sum(shown[:100]) <= 5
    assert sum(shown[100:]) >= 95


def test_a_negative_correlation_does_not_make_the_other_one_shown(usage):
    """Vectors differ where words meet: contexts correlate "more", but not with more than chance."""
    answer = explain_meaning(
        [(0, np.random.default_rng(0).standard_normal((usage.ids_N.max() + 1, 30)))], usage
    )
    opposite = replace(
        answer,
        contexts=(Estimate(0.01, -0.05, 0.07),),
        together=(Estimate(-0.4, -0.5, -0.3),),
        difference=(Estimate(0.41, 0.3, 0.5),),
        p_contexts_Y=np.array([0.7]),
        p_together_Y=np.array([0.005]),
    )
    assert "neither is shown to be more than chance" in opposite.sentence()
