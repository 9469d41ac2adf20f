"""Initialize a model from the parameters of another one."""

import zlib
from dataclasses import fields

import jax
import numpy as np

from zerotollm.errors import UsageError
from zerotollm.model.build import Net, init_params
from zerotollm.model.config import TransformerConfig
from zerotollm.training.lora import Params, flatten_params, unflatten_params

NEW = "classifier"
"""The classification head: the parameter that a task may add."""


def check_same_model(theirs: TransformerConfig, ours: TransformerConfig, source: str) -> None:
    """Raise UsageError, naming the fields, if two resolved architectures differ."""
    may_differ = {"dropout", "num_classes"} | ({"max_length"} if ours.position != "learned" else set())
    differing = [
        f"{field.name} {was!r} (now {now!r})"
        for field in fields(ours)
        if field.name not in may_differ
        and (was := getattr(theirs, field.name)) != (now := getattr(ours, field.name))
    ]
    if differing:
        raise UsageError(
            f"{source} was trained with model.{', model.'.join(differing)}: give the same values to start from it"
        )


def transfer_params(params: Params, net: Net, source: str, *, same_labels: bool) -> Params:
    """Return the parameters that `net` is initialized with, from those of `source`.

    A classification head is transferred only with the `same_labels`. A classifier ignores surplus parameters. Raises
    UsageError, naming the tensor, if one is missing, has another shape or is surplus.
    """
    have = {path: leaf for path, leaf in flatten_params(params) if same_labels or path != NEW}
    expected = dict(flatten_params(jax.eval_shape(lambda: init_params(net, 0))))
    for path, leaf in expected.items():
        if path not in have and path != NEW:
            raise UsageError(f"{source} has no tensor {path}, and this model needs one of shape {leaf.shape}")
        if path in have and have[path].shape != leaf.shape:
            raise UsageError(
                f"{source}: the tensor {path} has shape {have[path].shape}, and this model needs {leaf.shape}"
            )
    surplus = sorted(have.keys() - expected.keys())
    if surplus and not net.config.num_classes:
        raise UsageError(f"{source} has a tensor {surplus[0]}, and this model has none of that name")
    return unflatten_params({path: have[path] for path in expected if path in have})


def fingerprint(params: Params | None) -> int | None:
    """Return a CRC-32 of all parameters and their paths, or None without parameters."""
    if params is None:
        return None
    total = 0
    for path, leaf in sorted(flatten_params(params)):
        total = zlib.crc32(np.asarray(leaf).tobytes(), zlib.crc32(path.encode(), total))
    return total
