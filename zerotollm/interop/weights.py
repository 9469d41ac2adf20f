"""Our parameters under the names of another library, and back: one list of `Weight` says both.

Nothing heavy is imported before it is needed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from zerotollm.errors import UsageError
from zerotollm.model.build import build_net, init_params
from zerotollm.model.config import BIASED, TransformerConfig


class Weight(NamedTuple):
    """A tensor of theirs and the parameters of ours that it holds."""

    theirs: str
    ours: tuple[tuple[str, ...], ...]
    """paths in our nested dict; several lie side by side, along the last axis, as they are with us"""
    transposed: bool = False
    """theirs has its output axis first, as torch's Linear has; ours has its input axis first"""
    rows: int = 0
    """axes of length 1 that theirs has in front"""


class Family(NamedTuple):
    """How a kind of model of the `transformers` library says what we say with TransformerConfig and parameters."""

    name: str
    model_type: str
    """`model_type` of its config.json"""
    architecture: str
    """its class in transformers"""
    obstacles: Callable[[TransformerConfig], list[str]]
    """what of a resolved model it cannot express, as `field is value (not what it knows)`"""
    write_config: Callable[[TransformerConfig], dict[str, Any]]
    """the fields of config.json of a resolved model without obstacles"""
    read_config: Callable[[Any], TransformerConfig]
    """a resolved model from a `zerotollm.interop.folder.ConfigFile`; raises UsageError for what we cannot express"""
    weights: Callable[[TransformerConfig], list[Weight]]
    """every tensor of a resolved model"""
    prefix: str
    """what the names of all tensors but the head's begin with; some folders leave it out"""
    computed: str = r"(?!)"
    """regular expression of tensors that may be there and say nothing new"""


def linear(theirs: str, at: Sequence[str], name: str, model: TransformerConfig) -> list[Weight]:
    """A matrix and, where `model` has one after it, its bias."""
    weights = [Weight(f"{theirs}.weight", ((*at, name),), transposed=True)]
    if name in BIASED[model.biases]:
        weights.append(Weight(f"{theirs}.bias", ((*at, f"{name}_bias"),)))
    return weights


def norm(theirs: str, at: Sequence[str], model: TransformerConfig) -> list[Weight]:
    """A norm: its scale and, in LayerNorm, its bias."""
    weights = [Weight(f"{theirs}.weight", ((*at, "scale"),))]
    if model.norm == "layer":
        weights.append(Weight(f"{theirs}.bias", ((*at, "bias"),)))
    return weights


def unlike(model: TransformerConfig, needed: Mapping[str, Any]) -> list[str]:
    """The fields of `model` that differ from what is needed (a value, or a tuple of several), as obstacles. No family
    has a head for labels."""
    found = ["a head that tells labels"] if model.num_classes else []
    for name, value in needed.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if getattr(model, name) not in allowed:
            found.append(f"model.{name} is {getattr(model, name)!r} (not {' or '.join(map(repr, allowed))})")
    return found


def to_theirs(params: Any, weights: Iterable[Weight]) -> dict[str, Any]:
    """Their tensors by name: numpy arrays that share no memory with ours."""
    import numpy as np

    tensors = {}
    for weight in weights:
        x = np.concatenate([np.asarray(_at(params, path)) for path in weight.ours], axis=-1)
        x = x.T if weight.transposed else x
        tensors[weight.theirs] = np.array(x.reshape((1,) * weight.rows + x.shape), order="C")
    return tensors


def from_theirs(
    weights: Iterable[Weight], shapes: Any, tensor: Callable[[str, tuple[int, ...]], Any]
) -> dict[str, Any]:
    """Our nested dict of float32 numpy arrays. `shapes` is our tree of shapes; `tensor(name, shape)` gives one of
    theirs, which must have that shape. Raises KeyError where a parameter of ours is in no `Weight`."""
    import numpy as np

    found: dict[tuple[str, ...], Any] = {}
    for weight in weights:
        ours = [tuple(_at(shapes, path).shape) for path in weight.ours]
        widths = [shape[-1] for shape in ours]
        whole = (*ours[0][:-1], sum(widths))
        shape = (1,) * weight.rows + (whole[::-1] if weight.transposed else whole)
        x = np.asarray(tensor(weight.theirs, shape), np.float32).reshape(shape[weight.rows :])
        x = x.T if weight.transposed else x
        for path, part in zip(weight.ours, np.split(x, np.cumsum(widths)[:-1], axis=-1), strict=True):
            found[path] = np.array(part, order="C")

    def build(tree: Any, at: tuple[str, ...]) -> Any:
        if hasattr(tree, "shape"):
            return found[at]
        return {name: build(inner, (*at, name)) for name, inner in tree.items()}

    return build(shapes, ())


def parameter_shapes(model: TransformerConfig) -> Any:
    """Our nested dict, of shapes; nothing is allocated. `model` is resolved."""
    return jax.eval_shape(lambda: init_params(build_net(model), 0))


def check(family: Family, model: TransformerConfig) -> None:
    """Raises UsageError, naming the fields in the way, where `family` cannot express `model`, resolved or not."""
    found = family.obstacles(model)
    if found:
        raise UsageError(
            f"{', '.join(found)}, which {family.name} of transformers does not know: this model has no twin there"
        )


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
