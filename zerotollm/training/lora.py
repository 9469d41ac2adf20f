"""Training a subset of a model's parameters, or low-rank adapters: pure functions over the parameter tree.

LoRA (arXiv:2106.09685, section 4.1) freezes a matrix W and trains A and B of a small rank R beside it:

    W + alpha / R * A B,    A [in, R] drawn at random, B [R, out] zero, so that training starts at W

Training computes with the merged matrix too: for batches of many more than R tokens it costs next to nothing, and the
exported model is the trained one exactly. A path is the names on the way to a leaf: `layer_0/attention/query`.
"""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from zerotollm.errors import UsageError
from zerotollm.model.build import Params
from zerotollm.sharding.rules import path_name
from zerotollm.training.config import TrainConfig

OWN, LORA = "own", "lora"
"""Keys of the trained parameters: the model's own, and adapters. Checkpoints contain them."""


def trains_subset(train: TrainConfig) -> bool:
    """Return whether some parameters are frozen."""
    return bool(train.lora_rank or train.trainable)


def partition(params: Params, pattern: str, new: frozenset[str] = frozenset()) -> tuple[Params, Params]:
    """Return (selected, other) parameters as nested dicts: paths that `pattern` matches, and heads named in `new`.

    An empty pattern matches nothing.
    """
    selected, others = {}, {}
    for path, leaf in flatten_params(params):
        selects = path.partition("/")[0] in new or (pattern and re.search(pattern, path))
        (selected if selects else others)[path] = leaf
    return unflatten_params(selected), unflatten_params(others)


def union(left: Params, right: Params) -> Params:
    """Return the union of two nested dicts without a common leaf."""
    return unflatten_params(dict(flatten_params(left)) | dict(flatten_params(right)))


def init_adapters(params: Params, train: TrainConfig, key: jax.Array) -> Params:
    """Return new A and B for every matrix whose path matches `train.lora_targets`: {..., "query": {"a", "b"}}.

    Raises UsageError if no path matches.
    """
    targets = [(p, x) for p, x in flatten_params(params) if x.ndim == 2 and re.search(train.lora_targets, p)]
    if not targets:
        raise UsageError(
            f"train.lora_targets {train.lora_targets!r} matches no matrix: change it; "
            f"paths are {example_paths(params)}"
        )
    adapters = {}
    for (path, leaf), k in zip(targets, jax.random.split(key, len(targets)), strict=True):
        X, Y = leaf.shape
        adapters[f"{path}/a"] = jax.random.normal(k, (X, train.lora_rank)) * X**-0.5
        adapters[f"{path}/b"] = jnp.zeros((train.lora_rank, Y))
    return unflatten_params(adapters)


def merge_adapters(
    params: Params, adapters: Params, train: TrainConfig, dropout_key: jax.Array | None = None
) -> Params:
    """Return the parameters with all adapters added to their matrices.

    With a key, a fraction `train.lora_dropout` of each A's rows is dropped, which drops those input features of the
    matrix for all tokens of a step (as in the authors' code; section 4.1 has no dropout).
    """
    flat, pairs = dict(flatten_params(params)), dict(flatten_params(adapters))
    paths = [path.removesuffix("/a") for path in pairs if path.endswith("/a")]
    for number, path in enumerate(paths):
        a_XR, b_RY = pairs[f"{path}/a"], pairs[f"{path}/b"]
        if dropout_key is not None and train.lora_dropout:
            keep_rate = 1 - train.lora_dropout
            key = jax.random.fold_in(dropout_key, number)
            a_XR = a_XR * jax.random.bernoulli(key, keep_rate, (len(a_XR), 1)) / keep_rate
        flat[path] = flat[path] + train.lora_alpha / train.lora_rank * (a_XR @ b_RY)
    return unflatten_params(flat)


def split_params(
    params: Params, train: TrainConfig, key: jax.Array, new: frozenset[str] = frozenset()
) -> tuple[Params, Params | None]:
    """Return (trained, frozen) parameters, see `merge_params`. Heads named in `new` are always trained.

    Raises UsageError if a pattern of `train` matches nothing.
    """
    if not trains_subset(train):
        return params, None
    if train.trainable and not any(re.search(train.trainable, path) for path, _ in flatten_params(params)):
        raise UsageError(
            f"train.trainable {train.trainable!r} matches no parameter: change it; "
            f"paths are {example_paths(params)}"
        )
    own, frozen = partition(params, train.trainable, new)
    return {OWN: own} | ({LORA: init_adapters(frozen, train, key)} if train.lora_rank else {}), frozen


def merge_params(
    trained: Params, frozen: Params | None, train: TrainConfig, dropout_key: jax.Array | None = None
) -> Params:
    """Merge trained and frozen parameters into those of the model."""
    if frozen is None:
        return trained
    if LORA in trained:
        frozen = merge_adapters(frozen, trained[LORA], train, dropout_key)
    return union(trained.get(OWN, {}), frozen)


# --- trees by path


def flatten_params(params: Params) -> list[tuple[str, jax.Array]]:
    """Return (path, leaf) of every leaf of a nested dict, in the order of `jax.tree.leaves`."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def unflatten_params(flat: dict[str, jax.Array]) -> Params:
    """Return the nested dict of leaves by path."""
    return unflatten_dict(flat, sep="/")


def example_paths(params: Params) -> str:
    """Return the first paths, for error messages."""
    paths = [path for path, _ in flatten_params(params)]
    return ", ".join([*paths[:3], "..."] if len(paths) > 3 else paths)
