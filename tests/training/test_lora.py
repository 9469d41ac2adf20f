"""Training a part of the parameters, or adapters beside them: the rest stays to the bit, and nothing else changes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.functions import init_params, init_state, objective_of, seeded_train_step
from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.training.lora import (
    example_paths,
    flatten_params,
    init_adapters,
    merge_adapters,
    merge_params,
    partition,
    split_params,
    union,
)

MODEL = resolve(
    TransformerConfig(num_layers=1, width=16, num_heads=2, vocab_size=40), vocab_size=40, context=8
)
ADAMW = OptimizerConfig(kind="adamw", learning_rate=0.01, warmup_steps=1)
LORA = TrainConfig(steps=3, lora_rank=4, start_from="base")


def batch(seed: int = 0, rows: int = 4) -> dict:
    tokens_BT = jax.random.randint(jax.random.key(seed), (rows, 9), 0, 40)
    return {
        "inputs": tokens_BT[:, :-1],
        "targets": tokens_BT[:, 1:],
        "weights": jnp.ones((rows, 8)),
        "segments": jnp.ones((rows, 8), jnp.int32),
    }


def trained(train: TrainConfig, given, steps: int = 3, optimizer: OptimizerConfig = ADAMW):
    state = jax.jit(partial(init_state, MODEL, optimizer, train))(init_from=given)
    step = jax.jit(seeded_train_step(MODEL, optimizer, train))
    for number in range(steps):
        state, metrics = step(state, batch(number), np.uint32(train.seed))
    return state, metrics


@pytest.fixture(scope="module")
def params():
    return jax.jit(init_params, static_argnums=0)(MODEL, 0)


@pytest.fixture(scope="module")
def finished(params):
    """Three steps of adapters."""
    return trained(LORA, params)[0]


def flat(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_params(tree)}


def test_training_starts_at_the_unchanged_model(params):
    own, frozen = split_params(params, LORA, jax.random.key(0))
    same = flat(merge_params(own, frozen, LORA))
    assert same.keys() == flat(params).keys()
    assert all((same[path] == leaf).all() for path, leaf in flat(params).items())


def test_only_adapters_are_trained_and_frozen_parameters_stay_bitwise_equal(params, finished):
    assert flat(finished.frozen).keys() == flat(params).keys()
    assert all(leaf.tobytes() == flat(finished.frozen)[path].tobytes() for path, leaf in flat(params).items())
    adapters = flat(finished.params)
    targets = {path for path, x in flat(params).items() if x.ndim == 2 and "layer_0/" in path}
    assert {path.removeprefix("lora/")[:-2] for path in adapters} == targets
    assert all((leaf != 0).any() for leaf in adapters.values())
    # The optimizer remembers two numbers of every number that is trained, and a count.
    numbers = sum(leaf.size for leaf in adapters.values())
    assert sum(x.size for x in jax.tree.leaves(finished.opt_state) if x.ndim) == 2 * numbers


def test_a_merged_model_equals_separate_adapters(params, finished):
    full = flat(merge_params(finished.params, finished.frozen, LORA))
    adapters = flat(finished.params["lora"])
    x_NX = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    for path in ("layer_0/attention/query", "layer_0/feed_forward/up"):
        a_XR, b_RY = adapters[f"{path}/a"], adapters[f"{path}/b"]
        beside = x_NX @ flat(params)[path] + LORA.lora_alpha / 4 * ((x_NX @ a_XR) @ b_RY)
        np.testing.assert_allclose(x_NX @ full[path], beside, rtol=1e-4, atol=1e-4)
        assert np.abs(full[path] - flat(params)[path]).max() > 1e-4
    unchanged = flat(params).keys() - {path[:-2] for path in adapters}
    assert all((full[path] == flat(params)[path]).all() for path in unchanged)


def test_adapters_are_initialized_with_scaled_normals_and_zeros():
    """A of variance 1 / in: what it makes of an input with numbers of size 1 has numbers of size 1."""
    train = replace(LORA, lora_rank=32, lora_targets="wide|high")
    adapters = flat(
        init_adapters({"wide": jnp.zeros((256, 8)), "high": jnp.zeros((64, 128))}, train, jax.random.key(0))
    )
    assert {path: x.shape for path, x in adapters.items()} == {
        "wide/a": (256, 32), "wide/b": (32, 8), "high/a": (64, 32), "high/b": (32, 128),
    }  # fmt: skip
    assert adapters["wide/a"].std() == pytest.approx(1 / 16, rel=0.05)
    assert adapters["high/a"].std() == pytest.approx(1 / 8, rel=0.05)
    assert np.abs(adapters["wide/a"][:64] / 2 - adapters["high/a"]).max() > 0.1, "each has a draw of its own"
    assert not adapters["wide/b"].any()
    assert not adapters["high/b"].any()


def test_new_heads_are_trained_and_an_empty_pattern_matches_nothing(params):
    left, right = partition(params, "", frozenset({"head"}))
    assert list(left) == ["head"]
    assert "head" not in right
    assert partition(params, "") == ({}, params)
    trained, frozen = split_params(params, LORA, jax.random.key(0), frozenset({"head"}))
    assert list(trained["own"]) == ["head"]
    assert "head" not in frozen
    assert split_params(params, TrainConfig(), jax.random.key(0)) == (params, None)
    assert merge_params(params, None, TrainConfig()) is params


def test_a_pattern_may_match_part_of_a_path(params):
    own = split_params(params, TrainConfig(trainable="ward/up", start_from="base"), jax.random.key(0))[0][
        "own"
    ]
    assert list(flat(own)) == ["layer_0/feed_forward/up"]


def test_messages_list_three_paths_and_an_ellipsis():
    assert example_paths({"a": 1, "b": {"c": 2}, "d": 3}) == "a, b/c, d"
    assert example_paths({"a": 1, "b": {"c": 2}, "d": 3, "e": 4}) == "a, b/c, d, ..."


def test_adapters_are_stacked_by_merging_in_turn(params, finished):
    first = finished.params["lora"]
    second = init_adapters(params, replace(LORA, lora_targets="query"), jax.random.key(5))
    second = jax.tree.map(lambda x: x + 1.0, second)
    both = flat(merge_adapters(merge_adapters(params, first, LORA), second, LORA))
    path = "layer_0/attention/query"
    deltas = [
        LORA.lora_alpha
        / 4
        * (a["layer_0"]["attention"]["query"]["a"] @ a["layer_0"]["attention"]["query"]["b"])
        for a in (first, second)
    ]
    np.testing.assert_allclose(both[path], flat(params)[path] + sum(deltas), rtol=1e-5, atol=1e-5)


def test_at_full_rank_the_gradient_of_b_is_that_of_the_matrix(params):
    path = "layer_0/attention/query"
    train = replace(LORA, lora_rank=16, lora_alpha=16.0, lora_targets=path)
    adapters = {"layer_0": {"attention": {"query": {"a": jnp.eye(16), "b": jnp.zeros((16, 16))}}}}
    objective = objective_of(MODEL, train)
    key = jax.random.key(0)

    def with_adapters(adapters):
        return objective(merge_adapters(params, adapters, train), batch(), key)[0]

    b, full = jax.jit(
        lambda: (jax.grad(with_adapters)(adapters), jax.grad(lambda p: objective(p, batch(), key)[0])(params))
    )()
    b, full = b["layer_0"]["attention"]["query"]["b"], full["layer_0"]["attention"]["query"]
    assert jnp.abs(full).max() > 0
    np.testing.assert_allclose(b, full, rtol=1e-5, atol=1e-6)


def test_micro_batches_give_the_update_of_the_batch(params, finished):
    accumulated, _ = trained(replace(LORA, micro_batches=2), params)
    for ours, theirs in zip(*map(jax.tree.leaves, (accumulated.params, finished.params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_vmapped_seeds_train_as_single_ones(params):
    seeds = np.array([0, 7], np.uint32)
    state = jax.jit(jax.vmap(lambda seed: init_state(MODEL, ADAMW, LORA, seed, init_from=params)))(seeds)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), batch())
    state, metrics = jax.jit(jax.vmap(seeded_train_step(MODEL, ADAMW, LORA)))(state, stacked, seeds)
    single = init_state(MODEL, ADAMW, LORA, seeds[1], init_from=params)
    single, alone = jax.jit(seeded_train_step(MODEL, ADAMW, LORA))(single, batch(), seeds[1])
    np.testing.assert_allclose(metrics["loss"][1], alone["loss"], rtol=1e-5)
    a, b = (s["lora"]["layer_0"]["attention"]["query"]["a"] for s in (state.params, single.params))
    np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5)
    assert (a[0] != a[1]).any()


def test_only_matching_parameters_are_trained(params):
    train = TrainConfig(steps=3, trainable="layer_0/feed_forward/|head", start_from="base")
    state, _ = trained(train, params)
    after, before = flat(merge_params(state.params, state.frozen, train)), flat(params)
    changed = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert changed == {path for path in before if "feed_forward/" in path or path == "head"}


def test_training_the_head_alone_leaves_no_matrix_for_muon(params):
    train = TrainConfig(steps=3, trainable="^head", start_from="base")
    state, _ = trained(train, params, steps=1, optimizer=OptimizerConfig(warmup_steps=1))
    assert (flat(state.params["own"])["head"] != flat(params)["head"]).any()


def test_adapter_dropout_drops_rows_and_scales_the_others(params, finished):
    train = replace(LORA, lora_dropout=0.5)
    adapters = finished.params["lora"]
    path = "layer_0/attention/query"
    delta = flat(merge_adapters(params, adapters, train))[path] - flat(params)[path]
    with_dropout = jax.jit(lambda i: merge_adapters(params, adapters, train, jax.random.key(i)))
    draws = [flat(with_dropout(i))[path] - flat(params)[path] for i in range(2)]
    assert {bool(np.abs(row).max() < 1e-7) for row in draws[0]} == {True, False}
    kept = np.abs(draws[0]).max(axis=1) > 1e-7
    np.testing.assert_allclose(draws[0][kept], 2 * delta[kept], rtol=1e-3, atol=1e-6)
    assert (draws[0] != draws[1]).any()


def test_partition_and_union_are_inverse(params):
    left, right = partition(params, "attention/")
    assert set(flat(left)) | set(flat(right)) == set(flat(params))
    assert all("attention/" in path for path in flat(left))
    assert all((flat(union(left, right))[path] == leaf).all() for path, leaf in flat(params).items())


def test_a_pattern_that_matches_nothing_is_refused(params):
    with pytest.raises(
        UsageError, match=r"train\.trainable 'layer_9' matches no parameter: change it; paths are embedding"
    ):
        split_params(params, TrainConfig(trainable="layer_9", start_from="base"), jax.random.key(0))
    with pytest.raises(UsageError, match=r"train\.lora_targets 'norm' matches no matrix"):
        split_params(params, replace(LORA, lora_targets="norm"), jax.random.key(0))
