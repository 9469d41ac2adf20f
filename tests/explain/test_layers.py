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
    found = explain_layers(stream(own, own + context, context), WINDOWS, ENDS)
    np.testing.assert_allclose(found.self_similarity_M.value[0], 1, rtol=1e-5)
    assert found.self_similarity_M.value[1] == pytest.approx(0.5, abs=0.12)
    assert found.self_similarity_M.low[2] < 0 < found.self_similarity_M.high[2]
    assert found.context_M[0] == pytest.approx(0, abs=1e-5)
    assert found.context_M[1] == pytest.approx(0.5, abs=0.12)
    assert found.context_M[2] == pytest.approx(1, abs=0.05)
    assert "one vector, wherever it stands" in found.sentence()
    assert "100 % of all variance" in found.sentence() or "9" in found.sentence()


def test_vectors_that_never_change_show_no_context():
    own = TABLE[WINDOWS[:, :T]]
    assert "nothing shows that context" in explain_layers(stream(own, own), WINDOWS, ENDS).sentence()


def test_a_cone_is_measured():
    found = explain_layers(stream(DRAW.standard_normal((B, T, D)) + 10), WINDOWS, ENDS)
    assert found.any_similarity_M[0] > 0.95
    assert found.sentence_similarity_M.value[0] > 0.95


def test_what_was_written_can_be_read_and_the_control_tells_why():
    ids_N, window_N = WINDOWS[:, :T].ravel(), np.repeat(np.arange(B), T)
    label_N = DRAW.integers(0, 3, B * T)
    noise = DRAW.standard_normal((B * T, D))
    written = noise.copy()
    written[:, :3] += 6 * np.eye(3)[label_N]
    known_by_heart = TABLE[ids_N] + 0.1 * noise
    found = probe("a label", np.stack([noise, written, known_by_heart]), label_N, ids_N, window_N)
    assert found.best() == 1
    assert found.accuracy_M.value[1] > 0.95
    assert found.accuracy_M.low[0] <= found.majority + 0.05
    assert found.control_M[2] > found.control_M[0] + 0.2


def test_noise_can_be_read_nowhere():
    noise = DRAW.standard_normal((3, B, T, D))
    (*_, genre) = explain_layers(
        stream(*noise), WINDOWS, ENDS, {"genre": DRAW.integers(-1, 2, (B, T))}
    ).probes
    assert genre.task == "genre"
    assert genre.best() is None
