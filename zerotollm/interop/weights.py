"""Parameters under the names of another library and back: one list of `Weight` serves both directions."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zerotollm.errors import UsageError
from zerotollm.model.build import Params, build_net, init_params
from zerotollm.model.config import BIASED, TransformerConfig
from zerotollm.types import PyTree

Path = tuple[str, ...]  # keys into nested parameters


class Weight(NamedTuple):
    """One of their tensors and the parameters of ours that it holds."""

    theirs: str
    ours: tuple[Path, ...]  # several parameters are concatenated along their last axis
    transposed: bool = False  # theirs has its output axis first, as torch.nn.Linear
    rows: int = 0  # leading axes of length 1 in theirs
    optional: bool = False  # zeros that a folder need not hold


def linear(theirs: str, layer: Path, name: str, model: TransformerConfig) -> list[Weight]:
    """Return a matrix and, where `model` has one, its bias."""
    weights = [Weight(f"{theirs}.weight", ((*layer, name),), transposed=True)]
    if name in BIASED[model.biases]:
        weights.append(Weight(f"{theirs}.bias", ((*layer, f"{name}_bias"),)))
    return weights


def norm(theirs: str, layer: Path, model: TransformerConfig) -> list[Weight]:
    """Return the scale of a norm and, for LayerNorm, its bias."""
    names = {"weight": "scale"} | ({"bias": "bias"} if model.norm == "layer" else {})
    return [Weight(f"{theirs}.{suffix}", ((*layer, name),)) for suffix, name in names.items()]


def head(model: TransformerConfig) -> list[Weight]:
    """Return the output matrix of a decoder, where it is not the embedding."""
    return [] if model.tie_embeddings else [Weight("lm_head.weight", (("head",),), transposed=True)]


def to_theirs(params: Params, weights: Iterable[Weight]) -> dict[str, np.ndarray]:
    """Return their tensors by name. They share no memory with ours."""
    tensors = {}
    for weight in weights:
        x = np.concatenate([np.asarray(_at(params, path)) for path in weight.ours], axis=-1)
        x = x.T if weight.transposed else x
        tensors[weight.theirs] = np.array(x.reshape((1,) * weight.rows + x.shape), order="C")
    return tensors


def convert_dtype(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return tensors in another floating-point type, rounded to nearest. Raises UsageError where a number overflows."""
    converted = {}
    for name, x in tensors.items():
        with np.errstate(over="ignore"):
            converted[name] = x.astype(dtype)  # jax is imported: numpy knows bfloat16
        if np.isinf(converted[name]).any() and not np.isinf(x).any():
            raise UsageError(
                f"{name} holds numbers up to {np.abs(x).max():.3g}, which {dtype} cannot hold: "
                "export with --dtype bfloat16 or float32"
            )
    return converted


def from_theirs(
    weights: Iterable[Weight], shapes: Params, tensor: Callable[[str, tuple[int, ...]], Any]
) -> Params:
    """Return our parameters of these shapes as float32 arrays; `tensor(name, shape)` returns one of theirs."""
    arrays: dict[Path, np.ndarray] = {}
    for weight in weights:
        ours = [_at(shapes, path).shape for path in weight.ours]
        widths = [shape[-1] for shape in ours]
        joined = (*ours[0][:-1], sum(widths))
        shape = (1,) * weight.rows + (joined[::-1] if weight.transposed else joined)
        x = np.asarray(tensor(weight.theirs, shape), np.float32).reshape(shape[weight.rows :])
        x = x.T if weight.transposed else x
        parts = np.split(x, np.cumsum(widths)[:-1], axis=-1)
        arrays |= {path: np.array(x, order="C") for path, x in zip(weight.ours, parts, strict=True)}
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[tuple(key.key for key in path)], shapes)


def parameter_shapes(model: TransformerConfig) -> Params:
    """Return the shapes of the parameters of a resolved model; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(build_net(model), 0))


def _at(tree: PyTree, path: Sequence[str]) -> PyTree:
    for name in path:
        tree = tree[name]
    return tree
