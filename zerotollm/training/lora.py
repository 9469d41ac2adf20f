"""Training a part of a model's parameters, or small matrices beside them: pure functions over the parameter tree.

LoRA (arXiv:2106.09685, section 4.1) leaves a matrix W as it is and trains A and B of a small rank R beside it:

    W + alpha / R * A B,    A [in, R] drawn at random, B [R, out] zero, so that training begins with W

The sum is what the model computes with, in training too: for batches of many more than R tokens it costs next to
nothing, and a merged model is the trained one exactly. A path is the names on the way to a leaf:
`layer_0/attention/query`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from zerotollm.errors import UsageError
from zerotollm.training.config import TrainConfig

Params = dict[str, Any]
OWN, LORA = "own", "lora"
"""The two parts of a tree of trained parameters: some of the model's own, and adapters."""


def trains_subset(train: TrainConfig) -> bool:
    """Whether some parameters stay as they are."""
    return bool(train.lora_rank or train.trainable)


def partition(params: Params, pattern: str, new: frozenset[str] = frozenset()) -> tuple[Params, Params]:
    """(those whose path holds a match of `pattern`, the others), each a nested dict; parts named in `new` are among the
    first. An empty pattern matches nothing."""
    chosen, others = {}, {}
    for path, leaf in flatten_params(params):
        found = path.partition("/")[0] in new or (pattern and re.search(pattern, path))
        (chosen if found else others)[path] = leaf
    return unflatten_params(chosen), unflatten_params(others)


def union(left: Params, right: Params) -> Params:
    """The union of two nested dicts without a common leaf."""
    return unflatten_params(dict(flatten_params(left)) | dict(flatten_params(right)))


def init_adapters(params: Params, train: TrainConfig, key: jax.Array) -> Params:
    """Fresh A and B for every matrix whose path holds a match of `train.lora_targets`: {..., "query": {"a", "b"}}.

    Raises UsageError where there is none.
    """
    targets = [(p, x) for p, x in flatten_params(params) if x.ndim == 2 and re.search(train.lora_targets, p)]
    if not targets:
        raise UsageError(
            f"train.lora_targets {train.lora_targets!r} matches no matrix; there are {some_paths(params)}"
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
    """The parameters with all adapters added. Several are stacked by merging one after the other.

    With a key, a share `train.lora_dropout` of each A's rows is left out, which is to drop those features of the
    matrix's input (section 4.1 has none; its authors' code does): the same for all tokens of a step.
    """
    flat, pairs = dict(flatten_params(params)), dict(flatten_params(adapters))
    paths = [path.removesuffix("/a") for path in pairs if path.endswith("/a")]
    for number, path in enumerate(paths):
        a_XR, b_RY = pairs[f"{path}/a"], pairs[f"{path}/b"]
        if dropout_key is not None and train.lora_dropout:
            kept = 1 - train.lora_dropout
            key = jax.random.fold_in(dropout_key, number)
            a_XR = a_XR * jax.random.bernoulli(key, kept, (len(a_XR), 1)) / kept
        flat[path] = flat[path] + train.lora_alpha / train.lora_rank * (a_XR @ b_RY)
    return unflatten_params(flat)


def split_params(
    params: Params, train: TrainConfig, key: jax.Array, new: frozenset[str] = frozenset()
) -> tuple[Params, Params | None]:
    """(trained, frozen) parameters of a model, see `merge_params`. Heads named in `new` are always trained.

    Raises UsageError where a pattern of `train` matches nothing.
    """
    if not trains_subset(train):
        return params, None
    if train.trainable and not any(re.search(train.trainable, path) for path, _ in flatten_params(params)):
        raise UsageError(
            f"train.trainable {train.trainable!r} matches no parameter; there are {some_paths(params)}"
        )
    own, frozen = partition(params, train.trainable, new)
    return {OWN: own} | ({LORA: init_adapters(frozen, train, key)} if train.lora_rank else {}), frozen


def merge_params(
    trained: Params, frozen: Params | None, train: TrainConfig, dropout_key: jax.Array | None = None
) -> Params:
    """The model's parameters, out of what `split_params` made of them and what training made of that."""
    if frozen is None:
        return trained
    if LORA in trained:
        frozen = merge_adapters(frozen, trained[LORA], train, dropout_key)
    return union(trained.get(OWN, {}), frozen)


# --- trees by path


def flatten_params(params: Params) -> list[tuple[str, Any]]:
    """(path, leaf) of a nested dict."""
    return [
        ("/".join(entry.key for entry in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def unflatten_params(flat: dict[str, Any]) -> Params:
    """The nested dict of leaves by path."""
    tree: Params = {}
    for path, leaf in flat.items():
        *groups, name = path.split("/")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = leaf
    return tree


def some_paths(params: Params) -> str:
    """A few paths, for messages."""
    paths = [path for path, _ in flatten_params(params)]
    return ", ".join([*paths[:3], "..."] if len(paths) > 3 else paths)
