"""Beam search: a beam of one is greedy, a wide one finds the best of all, scores are the model's own."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest

from tests import functions
from tests.functions import init_params, whole_characters
from zerotollm.decoding import cache_growth
from zerotollm.decoding.beam import beam_search, hypotheses, length_penalty
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve

PAD, BOS, EOS = 0, 1, 2
NUM_TOKENS, LIMIT, SLOTS = 6, 4, 5
"""pad, bos, eos and three words, of 8 rows; targets have at most four tokens, eos included"""
MODEL = resolve(
    TransformerConfig(
        architecture="encoder-decoder",
        vocab_size=8,
        num_layers=1,
        width=16,
        num_heads=2,
        ff_width=32,
        token_shift=2,
    ),
    vocab_size=NUM_TOKENS,
    context=8,
)
SOURCES = np.array([[3, 4, EOS, PAD], [5, 5, 3, EOS], [4, EOS, PAD, PAD]], np.int32)
ALPHA = 0.6


@pytest.fixture(scope="module")
def params():
    """Random, and large enough that the model has opinions."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: init_params(MODEL, 0))
    return jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.6 + (x.ndim == 1)).astype(np.float32), shapes)


def search(params, beam, limits=(LIMIT,) * 3, alpha=ALPHA, sources=SOURCES, patience=1.0):
    found = beam_search(
        params, sources, sources != PAD, np.array(limits, np.int32), np.float32(alpha),
        net=build_net(MODEL), beam=beam, slots=SLOTS, special=(PAD, BOS, EOS), patience=patience,
        next_state_SV=whole_characters(NUM_TOKENS).next_state_SV,
    )  # fmt: skip
    return hypotheses(*found, eos=EOS)


@partial(jax.jit)
def forward(params, sources, tokens):
    return jax.nn.log_softmax(functions.forward(MODEL)(params, sources, sources != PAD, tokens))


def teacher_forced(params, source, targets):
    """Log-probability of each target, which ends in eos, by one forward pass without caches."""
    tokens = np.full((len(targets), LIMIT), PAD, np.int32)
    for row, target in enumerate(targets):
        tokens[row, : len(target)] = target
    inputs = np.concatenate([np.full((len(targets), 1), BOS, np.int32), tokens[:, :-1]], axis=1)
    log_p = np.asarray(forward(params, np.repeat(source[None], len(targets), 0), inputs))
    picked = np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return [float(picked[row, : len(target)].sum()) for row, target in enumerate(targets)]


def all_targets():
    words = range(3, NUM_TOKENS)
    return [(*t, EOS) for n in range(LIMIT) for t in itertools.product(words, repeat=n)]


def test_a_wide_beam_equals_exhaustive_search(params):
    targets = all_targets()
    for source, found in zip(SOURCES, search(params, beam=40), strict=True):
        scores = [
            log_p / length_penalty(len(target), ALPHA)
            for target, log_p in zip(targets, teacher_forced(params, source, targets), strict=True)
        ]
        order = np.argsort(scores)[::-1]
        assert len(found) == len(targets) == 40
        for hypothesis, best in zip(found[:10], order[:10], strict=True):
            assert hypothesis.score == pytest.approx(scores[best], abs=1e-4)
        assert (*found[0].ids, EOS) == targets[order[0]]


def test_scores_are_teacher_forced_log_probabilities(params):
    for alpha in (0.0, 1.0):
        for source, found in zip(SOURCES, search(params, beam=4, alpha=alpha), strict=True):
            assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
            targets = [(*h.ids.tolist(), EOS) for h in found]
            assert len(set(targets)) == len(targets)
            for target, hypothesis, log_p in zip(
                targets, found, teacher_forced(params, source, targets), strict=True
            ):
                assert hypothesis.score == pytest.approx(log_p / length_penalty(len(target), alpha), abs=1e-4)


def test_a_beam_of_one_is_greedy_and_respects_its_limit(params):
    limits = (LIMIT, 2, 1)
    for source, limit, found in zip(SOURCES, limits, search(params, 1, limits), strict=True):
        target = []
        while len(target) < limit - 1:
            inputs = np.array([[BOS, *target, *[PAD] * (LIMIT - 1 - len(target))]], np.int32)
            log_p = np.asarray(forward(params, source[None], inputs))[0, len(target)].copy()
            log_p[[PAD, BOS, *range(NUM_TOKENS, 8)]] = -np.inf
            token = int(log_p.argmax())
            if token == EOS:
                break
            target.append(token)
        assert [h.ids.tolist() for h in found] == [target]


def test_patience_continues_after_the_first_ends_and_is_no_worse(params):
    hasty, patient, endless = (search(params, 2, alpha=6.0, patience=p) for p in (1.0, 2.0, float("inf")))
    for few, more, all_ in zip(hasty, patient, endless, strict=True):
        assert len(few) == len(more) == 2
        assert few[0].score <= more[0].score <= all_[0].score
    assert any(few[0].score < all_[0].score for few, all_ in zip(hasty, endless, strict=True))
    assert [h[0].ids.tolist() for h in search(params, 1, patience=9.0)] == [
        h[0].ids.tolist() for h in search(params, 1)
    ]


def test_a_source_is_translated_the_same_in_any_batch(params):
    together = search(params, beam=3)
    for row, source in enumerate(SOURCES):
        for a, b in zip(search(params, 3, (LIMIT,), sources=source[None])[0], together[row], strict=True):
            assert a.ids.tolist() == b.ids.tolist()
            assert a.score == pytest.approx(b.score, abs=1e-5)


def test_caches_that_grow_in_stages_change_nothing(params, monkeypatch):
    at_once = search(params, beam=3)
    monkeypatch.setattr(cache_growth, "FIRST", 2)
    monkeypatch.setattr(cache_growth, "LARGE", 0)
    assert cache_growth.capacities(SLOTS, 1) == (2, 5)
    for a, b in zip(at_once, search(params, beam=3), strict=True):
        assert [h.ids.tolist() for h in a] == [h.ids.tolist() for h in b]
        np.testing.assert_allclose([h.score for h in a], [h.score for h in b], atol=1e-5)


def test_stages_double_and_small_caches_have_one_stage():
    assert cache_growth.capacities(100, 1) == (100,)
    assert cache_growth.capacities(80, cache_growth.LARGE) == (80,)
    assert cache_growth.capacities(272, cache_growth.LARGE) == (64, 128, 272)
    assert cache_growth.capacities(1040, cache_growth.LARGE) == (64, 128, 256, 512, 1040)


def test_length_penalty_matches_the_paper():
    assert length_penalty(1, 0.6) == 1
    assert length_penalty(7, 0.6) == pytest.approx(2**0.6)
    assert length_penalty(50, 0.0) == 1
