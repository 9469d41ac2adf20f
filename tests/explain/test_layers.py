"""Planted context and planted labels are found layer by layer; noise gives nothing."""

import numpy as np
import pytest

from zerotollm.explain.layers import explain_layers, probe

B, T, D, V = 24, 20, 16, 12
DRAW = np.random.default_rng(0)
WINDOWS = DRAW.integers(0, V, (B, T + 1))
ENDS = np.arange(V) == 0
TABLE = DRAW.standard_normal((V, D))


def stream(*layers):
    return np.stack([np.broadcast_to(x, (B, T, D)) for x in layers]).astype(np.float32)


def test_one_vector_then_many():
    own = TABLE[WINDOWS[:, :T]]
    context = DRAW.standard_normal((B, T, D))
    answer = explain_layers(stream(own, own + context, context), WINDOWS, ENDS)
    np.testing.assert_allclose(answer.self_similarity_M.value[0], 1, rtol=1e-5)
    assert answer.self_similarity_M.value[1] == pytest.approx(0.5, abs=0.12)
    assert answer.self_similarity_M.low[2] < 0 < answer.self_similarity_M.high[2]
    assert answer.context_M[0] == pytest.approx(0, abs=1e-5)
    assert answer.context_M[1] == pytest.approx(0.5, abs=0.12)
    assert answer.context_M[2] == pytest.approx(1, abs=0.05)
    assert "one vector, wherever it stands" in answer.sentence()
    # A model alone shows nothing about learning: fresh parameters mix contexts too.
    assert "how much of it was learned is not shown" in answer.sentence()


def fresh_streams(share: float, models: int, seed: int = 7):
    """Models of three places whose layers mix that share of context in, each with vectors of its own."""
    for k in range(models):
        draw = np.random.default_rng([seed, k])
        own = draw.standard_normal((V, D))[WINDOWS[:, :T]]
        yield stream(own, own, own + share * draw.standard_normal((B, T, D)))


def test_context_counts_only_beyond_that_of_fresh_parameters():
    """Planted: after the last layer half of the variance is context, where fresh parameters have a tenth."""
    (own,) = fresh_streams(1.0, 1, seed=1)
    learned = explain_layers(own, WINDOWS, ENDS, fresh=fresh_streams(0.3, 5))
    assert learned.fresh == 5
    assert learned.fresh_context == pytest.approx(0.3**2 / 1.09, abs=0.05)
    assert learned.learned.high < 0
    assert "training made context tell a token's places apart" in learned.sentence()
    opposite = explain_layers(own, WINDOWS, ENDS, fresh=fresh_streams(2.0, 5))
    assert "training made a token's places more alike" in opposite.sentence()
    same = explain_layers(own, WINDOWS, ENDS, fresh=fresh_streams(1.0, 5))
    assert "is not shown" in same.sentence()
    assert not any(probe.learned.low > 0 for probe in same.probes)


def test_a_narrower_cone_alone_is_no_context():
    """All vectors moved far in one direction: the corrected cosine falls, and no more of the variance is context."""
    (own,) = fresh_streams(0.3, 1, seed=1)
    own = own + np.float32(10) * (np.arange(3) == 2)[:, None, None, None]
    answer = explain_layers(own, WINDOWS, ENDS, fresh=fresh_streams(0.3, 5))
    assert answer.learned.high < 0
    assert answer.outcome() == "not shown"
    assert "that training made context tell them apart is not shown" in answer.sentence()


def test_a_cone_is_no_context():
    """All vectors have a cosine of 0.99 with all others: that those of one token have too shows nothing."""
    cone = stream(DRAW.standard_normal((B, T, D)) + 10)
    answer = explain_layers(cone, WINDOWS, ENDS)
    assert answer.self_similarity_M.value[0] > 0.95
    assert abs(answer.own_similarity[0]) < 0.01


def test_a_cone_is_measured():
    answer = explain_layers(stream(DRAW.standard_normal((B, T, D)) + 10), WINDOWS, ENDS)
    assert answer.any_similarity_M[0] > 0.95
    assert answer.sentence_similarity_M.value[0] > 0.95


def test_a_probe_reads_planted_labels_and_its_control_measures_memory():
    ids_N, window_N = WINDOWS[:, :T].ravel(), np.repeat(np.arange(B), T)
    label_N = DRAW.integers(0, 3, B * T)
    noise = DRAW.standard_normal((B * T, D))
    written = noise.copy()
    written[:, :3] += 6 * np.eye(3)[label_N]
    memorized = TABLE[ids_N] + 0.1 * noise
    answer = probe("a label", np.stack([noise, written, memorized]), label_N, ids_N, window_N)
    assert answer.best() == 1
    assert answer.accuracy_M.value[1] > 0.95
    assert answer.accuracy_M.low[0] <= answer.majority + 0.05
    assert answer.control_M[2] > answer.control_M[0] + 0.2
    # Memorized labels are not selective, however accurate the probe is.
    by_memory = probe("a token", memorized[None], ids_N % 3, ids_N, window_N)
    assert by_memory.accuracy_M.value[0] > 0.9
    assert by_memory.best() is None
    assert "a control is not shown" in by_memory.sentence() or "even better" in by_memory.sentence()


def test_a_probe_of_noise_reads_nothing():
    noise = DRAW.standard_normal((3, B, T, D))
    (*_, genre) = explain_layers(
        stream(*noise), WINDOWS, ENDS, {"genre": DRAW.integers(-1, 2, (B, T))}
    ).probes
    assert genre.task == "genre"
    assert genre.best() is None
