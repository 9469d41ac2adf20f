"""Planted geometry and planted similarity are found; noise gives nothing."""

import numpy as np
import pytest

from zerotollm.explain.embeddings import explain_embeddings, geometry
from zerotollm.explain.meaning import count_usage, explain_meaning
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
    assert "closer to another than chance" in noise.sentence()
    assert noise.map_N3.shape == (len(noise.map_pieces), 3)
    table_VD[common[0]] = table_VD[common[1]] + 0.1 * table_VD[common[0]]
    planted = explain_embeddings(table_VD, tokenizer, counts_V, common)
    (pair,) = [n for n in planted.neighbours if n.id == common[0]]
    assert pair.ids_K[0] == common[1]
    assert pair.cosine_K[0] > 0.9 > pair.chance


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
