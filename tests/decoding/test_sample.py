"""Decoding: the cached loop equals the full forward pass, and the filters do what their papers say."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import forward, init_params, whole_characters
from zerotollm.decoding import cache_growth, sample
from zerotollm.decoding.config import SamplingConfig
from zerotollm.decoding.filters import filter_logits
from zerotollm.model.build import build_net
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.model.layers import fuse_projections

CONFIG = resolve(
    TransformerConfig(num_layers=2, width=32, num_heads=4, num_kv_heads=2), vocab_size=60, context=24
)
GREEDY = SamplingConfig(max_tokens=10, temperature=0.0)
WHOLE = whole_characters(60)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, seed=0)


def draw(params, prompts, sampling, config=CONFIG, stop_ids=()):
    return sample.generate(params, build_net(config), prompts, sampling, stop_ids=stop_ids, utf8=WHOLE)


def greedy_without_cache(params, prompt, new_tokens, config=CONFIG):
    """Run one full forward pass per token, padded on the right: by causality the padding has no effect."""
    row = list(prompt)
    for _ in range(new_tokens):
        window = row[-config.max_length :]
        padded = jnp.asarray([window + [0] * (config.max_length - len(window))], jnp.int32)
        row.append(int(jnp.argmax(forward(config)(params, padded)[0, len(window) - 1, :60])))
    return row[len(prompt) :]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"biases": "qkv", "feed_forward": "gelu"},
        {"biases": "all", "num_kv_heads": 1},
        {"architecture": "encoder-decoder", "num_kv_heads": 4, "ff_width": 48},
    ],
    ids=str,
)
def test_fused_projections_give_the_same_logits(change):
    """`fuse_projections` with random biases; cross attention, whose keys read another input, is unchanged."""
    config = resolve(replace(CONFIG, **change), vocab_size=60, context=24)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.3, shapes)
    together = fuse_projections(params)
    tokens = jnp.asarray(rng.integers(5, 60, (2, 6)), jnp.int32)
    inputs = (tokens, tokens > 0, tokens) if config.architecture == "encoder-decoder" else (tokens,)
    names = {path[-1].key for path, _ in jax.tree.leaves_with_path(together)}
    assert "query+key+value" in names
    assert ("gate+up" in names) == (config.feed_forward == "swiglu")
    assert sum(x.size for x in jax.tree.leaves(together)) >= sum(x.size for x in jax.tree.leaves(params))
    logits = forward(config)
    np.testing.assert_allclose(logits(together, *inputs), logits(params, *inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"position": position} for position in ("rope", "learned", "sinusoidal", "none")] + [{"token_shift": 3}],
    ids=str,
)
def test_cached_decoding_equals_the_full_forward_pass(change):
    config = replace(CONFIG, **change)
    params = init_params(config, seed=1)
    prompt = [1, 17, 5]
    expected = greedy_without_cache(params, prompt, 22, config)  # up to one past the last position
    (drawn,) = draw(params, [np.array(prompt)], replace(GREEDY, max_tokens=22), config)
    assert drawn.tolist() == expected


@pytest.mark.parametrize("token_shift", [0, 3])
def test_prompts_of_different_lengths_do_not_disturb_each_other(token_shift):
    config = replace(CONFIG, token_shift=token_shift)
    params = init_params(config, seed=0)
    prompts = [np.array([1, 2, 3, 4, 5, 6, 7]), np.array([1]), np.array([9, 8, 7])]
    together = draw(params, prompts, GREEDY, config)
    for prompt, row in zip(prompts, together, strict=True):
        assert row.tolist() == greedy_without_cache(params, prompt.tolist(), 10, config)


def test_generation_continues_past_the_context_from_its_last_half(params):
    (drawn,) = draw(params, [np.array([1, 2])], replace(GREEDY, max_tokens=40))
    assert len(drawn) == 40
    full = [1, 2, *drawn.tolist()]
    assert full[2:25] == greedy_without_cache(params, [1, 2], 23)
    assert full[25:38] == greedy_without_cache(params, full[13:25], 13)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_the_same_alone_and_in_a_batch_past_the_context_too(params, temperature):
    """The first row has the same noise alone and in a batch; its position in the window differs from the others."""
    sampling = SamplingConfig(max_tokens=70, temperature=temperature, seed=5)
    rng = np.random.default_rng(0)
    for lengths in ([2, 24, 9], [24, 1], [11, 11, 3, 23, 24]):
        prompts = [rng.integers(5, 60, n).astype(np.int32) for n in lengths]
        together = draw(params, prompts, sampling)
        assert [len(row) for row in together] == [70] * len(lengths)
        (alone,) = draw(params, prompts[:1], sampling)
        assert together[0].tolist() == alone.tolist()
        # A later row has the same noise, whatever the other rows.
        others = [
            prompts[0],
            *[np.array([7] * (3 * row + 1)) for row in range(1, len(lengths) - 1)],
            prompts[-1],
        ]
        assert draw(params, others, sampling)[-1].tolist() == together[-1].tolist()


def test_a_long_row_that_ends_does_not_affect_the_others(params):
    """The longest row ends early: the others fill their own windows."""
    prompts = [np.array([1, 2, 3]), np.arange(5, 28)]
    free = draw(params, prompts, replace(GREEDY, max_tokens=60))
    stop = int(free[1][0])
    assert stop not in free[0]
    drawn = draw(params, prompts, replace(GREEDY, max_tokens=60), stop_ids=(stop,))
    assert [row.tolist() for row in drawn] == [free[0].tolist(), []]


def test_no_noise_is_used_twice():
    """With equal logits a token is its noise: windows past the context share no more tokens than by chance."""
    flat = jax.tree.map(np.zeros_like, init_params(CONFIG, seed=0))
    tokens = 1200
    sampling = SamplingConfig(max_tokens=tokens, temperature=1.0)
    rows = draw(flat, [np.array([1, 2]), np.arange(5, 20)], sampling)
    for drawn in rows:
        for lag in range(1, 40):
            equal = int((drawn[lag:] == drawn[:-lag]).sum())
            assert equal < 45, (
                f"{equal} of {tokens - lag} tokens are those {lag} before: expected by chance: 20"
            )
    assert (rows[0] == rows[1]).sum() < 45
    # Noise depends on the position in the text, not in the window: one long window has the same.
    long = replace(CONFIG, max_length=2048)
    (whole,) = draw(flat, [np.array([1, 2])], sampling, long)
    assert whole.tolist() == rows[0].tolist()


def test_streaming_samples_the_same_tokens(params):
    sampling = SamplingConfig(max_tokens=40, temperature=1.0, seed=3)
    prompts = [np.array([1, 2]), np.array([5])]
    whole = draw(params, prompts, sampling)
    pieces = list(
        sample.stream(params, build_net(CONFIG), prompts, sampling, stop_ids=(), utf8=WHOLE, chunk=3)
    )
    assert len(pieces) > 10
    for row in range(2):
        assert np.concatenate([piece[row] for piece in pieces]).tolist() == whole[row].tolist()


def test_caches_that_grow_in_stages_change_nothing(params, monkeypatch):
    sampling = SamplingConfig(max_tokens=30, temperature=1.0, seed=3)
    prompts = [np.array([1, 2]), np.array([5])]
    whole = draw(params, prompts, sampling)
    monkeypatch.setattr(cache_growth, "FIRST", 20)
    monkeypatch.setattr(cache_growth, "LARGE", 0)
    assert cache_growth.capacities(48, 1) == (20, 48)
    for chunk in (0, 7):
        pieces = sample.stream(
            params, build_net(CONFIG), prompts, sampling, stop_ids=(), utf8=WHOLE, chunk=chunk
        )
        rows = [np.concatenate(row) for row in zip(*pieces, strict=True)]
        assert [row.tolist() for row in rows] == [row.tolist() for row in whole]


def test_a_row_ends_at_its_first_stop_token_and_the_others_continue(params):
    prompts = [np.array([1, 2, 3]), np.array([9])]
    free = draw(params, prompts, GREEDY)
    stop = int(free[0][4])
    never = next(i for i in range(60) if not np.isin(i, free))
    for stop_ids in ((stop,), (never, stop), (stop, int(free[1][2]))):
        drawn = draw(params, prompts, GREEDY, stop_ids=stop_ids)
        for before, after in zip(free, drawn, strict=True):
            stops = [place for place, token_id in enumerate(before) if token_id in stop_ids]
            assert after.tolist() == before[: min(stops, default=None)].tolist()
        assert len(drawn[0]) <= 4


def test_seeds_repeat_and_differ(params):
    prompt = [np.array([1])]
    sampling = SamplingConfig(max_tokens=15, temperature=1.0, seed=0)
    assert draw(params, prompt, sampling)[0].tolist() == draw(params, prompt, sampling)[0].tolist()
    other = draw(params, prompt, replace(sampling, seed=1))[0].tolist()
    assert draw(params, prompt, sampling)[0].tolist() != other
    both = draw(params, [np.array([1]), np.array([1])], sampling)
    assert both[0].tolist() != both[1].tolist(), "two rows with one prompt are two samples"


def params_of(rows, **changes):
    return sample.SamplingParams.of(SamplingConfig(**changes), rows)


@jax.jit
def filtered_logits(logits, params):
    return filter_logits(logits, *params.filters)


LOGITS = np.log(np.array([[0.5, 0.2, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.2, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.6}, 2),
        ({"top_p": 0.49}, 1),
        ({"top_p": 1e-50}, 1),  # 0 in float32
        ({"top_p": 1.0}, 5),
        ({"min_p": 0.25}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.35}, 2),
    ],
)
def test_filters_keep_the_most_likely_tokens(changes, kept):
    filtered = np.asarray(jax.jit(filtered_logits)(jnp.asarray(LOGITS), params_of(2, **changes)))
    for row, logits in zip(filtered, LOGITS, strict=True):
        order = np.argsort(-logits)
        assert np.isfinite(row[order[:kept]]).all()
        assert np.isneginf(row[order[kept:]]).all()
        np.testing.assert_array_equal(row[order[:kept]], logits[order[:kept]])


@pytest.mark.parametrize(
    ("probabilities", "changes", "kept"),
    [
        ([0.25] * 4, {"top_p": 0.5}, [0, 1]),
        ([0.25] * 4, {"top_p": 0.51}, [0, 1, 2]),
        ([0.1, 0.2, 0.1, 0.2, 0.1, 0.3], {"top_p": 0.6}, [1, 3, 5]),
        ([0.1, 0.2, 0.1, 0.2, 0.1, 0.3], {"top_p": 0.75}, [0, 1, 3, 5]),
        ([0.125] * 8, {"top_p": 1e-6}, [0]),
        ([0.125] * 8, {"top_k": 3}, [0, 1, 2]),
        ([0.1, 0.2, 0.1, 0.2, 0.1, 0.3], {"top_k": 4}, [0, 1, 3, 5]),
        ([0.1, 0.2, 0.1, 0.2, 0.1, 0.3], {"min_p": 0.6}, [1, 3, 5]),
    ],
)
def test_lower_ids_win_ties_at_the_threshold(probabilities, changes, kept):
    """Top-p keeps the smallest set that reaches p, top-k exactly k, min-p all equals."""
    filtered = filtered_logits(jnp.log(jnp.array([probabilities])), params_of(1, **changes))
    assert np.flatnonzero(np.isfinite(filtered[0])).tolist() == kept


def test_top_p_keeps_the_smallest_set_of_rounded_logits():
    """Compared with float64; logits in steps of 1/4 have many ties."""
    rng = np.random.default_rng(0)
    logits = (np.round(rng.normal(size=(200, 50)) * 8) / 4).astype(np.float32)
    p = rng.uniform(0.05, 0.95, 200).astype(np.float32)
    rows = params_of(200)._replace(top_p_B=jnp.asarray(p))
    kept = np.isfinite(np.asarray(filtered_logits(jnp.asarray(logits), rows)))
    for row, least, mask in zip(logits.astype(np.float64), p, kept, strict=True):
        order = np.argsort(-row, kind="stable")
        mass = np.cumsum(np.exp(row[order]) / np.exp(row).sum())
        assert abs(mass - least).min() > 1e-6, "rounding decides: use another seed"
        assert set(np.flatnonzero(mask)) == set(order[: np.searchsorted(mass, least) + 1])


@pytest.mark.parametrize(
    "filters", [{"top_p": 0.9}, {"top_k": 7}, {"top_k": 40, "top_p": 0.99, "min_p": 0.02}], ids=str
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 300.0, 1e30])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_filters_are_those_of_a_sort_for_logits_of_any_size(filters, scale, backend, monkeypatch):
    """Half of the logits are excluded, some are 0.0 and -0.0, and whole rows are equal."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(40, 64)) * scale).astype(np.float32)
    logits[rng.uniform(size=logits.shape) < 0.5] = -np.inf
    logits[:, 3], logits[:, 5] = 0.0, -0.0
    logits[0] = 1.0
    kept = np.isfinite(np.asarray(filtered_logits(jnp.asarray(logits), params_of(40, **filters))))
    sampling = SamplingConfig(**filters)
    for row, mask in zip(logits.astype(np.float64), kept, strict=True):
        order = np.argsort(-row, kind="stable")
        mass = np.exp(row[order] - row.max()) / np.exp(row - row.max()).sum()
        before = np.cumsum(mass) - mass
        wanted = (before < sampling.top_p) & (mass >= sampling.min_p * mass[0]) & np.isfinite(row[order])
        wanted[sampling.top_k or len(row) :] = False
        clear = abs(before - sampling.top_p) > 1e-6  # elsewhere rounding decides
        np.testing.assert_array_equal(mask[order][clear], wanted[clear])


def test_a_zero_has_no_sign():
    """A compiled program leaves out an addition of 0.0."""
    logits = jnp.array([[-0.0, 0.0, -0.0, 0.0]])
    filtered = jax.jit(filtered_logits)(logits, params_of(1, top_k=1))
    assert np.flatnonzero(np.isfinite(filtered[0])).tolist() == [0]


def test_logits_that_are_no_numbers_end_the_search_for_the_threshold():
    logits = jnp.full((2, 8), jnp.nan).at[1, 3].set(1.0)
    assert filtered_logits(logits, params_of(2, top_p=0.9)).shape == (2, 8)
    assert int(sample.most_likely(logits)[0]) < 8


def test_the_most_likely_token_is_the_first_of_the_largest_logits():
    logits = np.round(np.random.default_rng(0).normal(size=(50, 30))).astype(np.float32)
    logits[0], logits[1, :2] = -np.inf, (-0.0, 0.0)
    np.testing.assert_array_equal(sample.most_likely(jnp.asarray(logits)), logits.argmax(axis=-1))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_generated_in_groups_are_the_same(params, temperature, monkeypatch):
    prompts = [np.arange(1, 2 + number) for number in range(6)]
    sampling = SamplingConfig(max_tokens=30, temperature=temperature, top_p=0.9)  # past the context, too
    together = draw(params, prompts, sampling, stop_ids=(7,))
    monkeypatch.setattr(sample, "num_groups", lambda rows: 3)
    monkeypatch.setattr("zerotollm.sharding.cores.usable_cores", lambda: 3)
    in_groups = draw(params, prompts, sampling, stop_ids=(7,))
    assert [text.tolist() for text in in_groups] == [text.tolist() for text in together]
    assert draw(params, [], sampling) == []


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"min_p": 0.1, "top_k": 3}], ids=str)
def test_a_temperature_near_zero_is_greedy(filters):
    logits = jnp.array([[30.0, 31.0, 29.0, 1.0], [3e4, 2e4, 1e4, 0.0]])
    for temperature in (0.0, 1e-45, 1e-40, 1.2e-38, 2e-38, 3e-38, 1e-36, 1e-20, 1e-9, 1e-6, 1e-4):
        drawn = sample.draw(logits, params_of(2, temperature=temperature, **filters), jnp.array([3, 4]))
        assert drawn.tolist() == [1, 0], temperature


@pytest.mark.parametrize(
    ("filters", "kept"), [({"top_k": 2}, 2), ({"top_p": 0.6}, 2), ({"min_p": 0.25}, 3), ({}, 5)], ids=str
)
def test_each_filter_alone_restricts_the_samples(filters, kept):
    """At a temperature of 1: of 5 tokens, whose probabilities fall, the first `kept` are drawn, and all of these; also
    in a batch where another row has no filter."""
    rows = 200
    mine, free = params_of(rows, temperature=1.0, **filters), params_of(rows, temperature=1.0, seed=1)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), mine, free)
    logits = jnp.repeat(jnp.asarray(LOGITS[:1]), 2 * rows, axis=0)
    drawn = np.asarray(jax.jit(sample.draw)(logits, both, jnp.zeros(2 * rows, jnp.int32)))
    assert set(drawn[:rows].tolist()) == set(range(kept))
    assert set(drawn[rows:].tolist()) == set(range(5))


def test_samples_follow_the_probabilities():
    many = jnp.repeat(jnp.asarray(LOGITS[:1]), 4000, axis=0)
    drawn = jax.jit(sample.draw)(many, params_of(4000, temperature=1.0), jnp.zeros(4000, jnp.int32))
    share = np.bincount(np.asarray(drawn), minlength=5) / 4000
    np.testing.assert_allclose(share, np.exp(LOGITS[0]), atol=0.04)  # five standard errors
    cold = jax.jit(sample.draw)(many, params_of(4000, temperature=0.5), jnp.zeros(4000, jnp.int32))
    sharpened = np.exp(2 * LOGITS[0]) / np.exp(2 * LOGITS[0]).sum()
    np.testing.assert_allclose(np.bincount(np.asarray(cold), minlength=5) / 4000, sharpened, atol=0.04)


def test_ids_beyond_the_vocabulary_are_never_drawn(params):
    hot = SamplingConfig(max_tokens=24, temperature=50.0)
    rows = draw(params, [np.array([1])] * 16, hot)
    assert max(row.max() for row in rows) < 60
