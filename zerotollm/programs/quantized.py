"""Parameters in 8 bits a number, and how often the likeliest token stays the same."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerotollm.data.batches.windows import Batch
from zerotollm.model.build import Net, Params
from zerotollm.model.transformer import Readout
from zerotollm.programs.source import named_arrays

LARGEST = 127
"""Largest number of 8 bits with a sign; -128 is not used, so that zero is in the middle."""
LOOKED_UP = ("embedding", "positions")
"""Matrices that are read by their first axis; all others are multiplied from the left, and stored transposed."""
POSITIONS = 16_384
"""Held-out positions, spread evenly, in which the likeliest tokens are compared."""


class Rows(NamedTuple):
    """A matrix of R rows, one for each output of a product, or for each token of an embedding."""

    small_RX: np.ndarray
    """int8"""
    scales_R: np.ndarray
    """float32: a number of the matrix is its scale times its int8"""


class Agreement(NamedTuple):
    """How often two models have the same likeliest token."""

    same: int
    positions: int

    @property
    def share(self) -> float:
        return self.same / self.positions


def quantize(params: Params) -> dict[str, Rows | np.ndarray]:
    """Return matrices in 8 bits, and norms and biases in float32, by the names of `named_arrays`."""
    return {
        name: x if x.ndim < 2 or name.endswith("token_shift.weights") else _rows(_by_output(name, x))
        for name, x in named_arrays(params).items()
    }


def _rows(x_RX: np.ndarray) -> Rows:
    scales_R = (np.abs(x_RX).max(axis=1) / LARGEST).astype(np.float32)
    divisors_R = np.where(scales_R > 0, scales_R, 1)
    small_RX = np.clip(np.rint(x_RX / divisors_R[:, None]), -LARGEST, LARGEST)
    return Rows(small_RX.astype(np.int8), scales_R)


def _by_output(name: str, x: np.ndarray) -> np.ndarray:
    return x if name.rpartition(".")[2] in LOOKED_UP else x.T


def round_params(params: Params) -> Params:
    """Return the parameters as a program reads them from 8 bits, in float32."""
    quantized = quantize(params)

    def rounded(path: tuple, x: jax.Array) -> jax.Array:
        name = ".".join(key.key for key in path)
        stored = quantized[name]
        if isinstance(stored, Rows):
            return jnp.asarray(_by_output(name, stored.small_RX * stored.scales_R[:, None]))
        return jnp.asarray(stored)

    return jax.tree_util.tree_map_with_path(rounded, params)


def compare(
    net: Net, params: Params, batches: Sequence[Batch], num_ids: int, pad_id: int | None = 0
) -> Agreement:
    """Compare a model's likeliest tokens with those after `round_params`, among the first `num_ids` ids.

    `batches` are evaluation batches, whose sources, if there are any, are padded with `pad_id`. Positions of weight 0
    are left out. At most about `POSITIONS` are compared.
    """

    @jax.jit
    def best(params: Params, inputs: Batch) -> jax.Array:
        readout = net.apply({"params": params}, inputs)
        assert isinstance(readout, Readout)
        return readout.logits()[..., :num_ids].argmax(-1)

    rounded, same, positions = round_params(params), 0, 0
    count = min(len(batches), max(1, POSITIONS // batches[0]["inputs"].size))
    for number in np.unique(np.linspace(0, len(batches) - 1, count).astype(int)):
        batch = batches[int(number)]
        inputs = {name: batch[name] for name in ("inputs", "segments", "sources") if name in batch}
        if "sources" in inputs:
            inputs["source_mask"] = inputs["sources"] != pad_id
        counted = batch["weights"] > 0
        equal = np.asarray(best(params, inputs)) == np.asarray(best(rounded, inputs))
        same, positions = same + int(equal[counted].sum()), positions + int(counted.sum())
    return Agreement(same, positions)
