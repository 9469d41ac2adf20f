"""The stack of blocks, with less kept for the backward pass, or compiled once for all layers."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# What each choice of `remat` keeps. Attention's scores are products with batch axes: "dots" does not keep them.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialized(
    block: Callable[[nn.Module, jax.Array], jax.Array], remat: str
) -> Callable[..., jax.Array]:
    """`block(module, x)` that computes again, in the backward pass, what `remat` does not keep
    (arXiv:1604.06174)."""
    return nn.remat(block, policy=POLICIES[remat])


def scan_layers(
    block: Callable[[Any, jax.Array, jax.Array | None], jax.Array],
    layers: Sequence[Any],
    x_BTD: jax.Array,
    *,
    key: jax.Array | None,
    remat: str,
) -> jax.Array:
    """`block(params, x, key)` over the parameters of all `layers` in one loop, so that XLA compiles one block.

    Parameters stay one tree a layer everywhere else: here they are stacked, matrices in the type of `x_BTD`, which
    in half precision is the copy that the products need anyway. `key` is split over layers for dropout.
    """

    def stack(*leaves: jax.Array) -> jax.Array:
        matrix = leaves[0].ndim == 2
        return jnp.stack([leaf.astype(x_BTD.dtype) if matrix else leaf for leaf in leaves])

    def body(x_BTD, layer):
        return block(layer[0], x_BTD, layer[1]), None

    if remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=False)  # a loop has none to prevent
    keys = None if key is None else jax.random.split(key, len(layers))
    return jax.lax.scan(body, x_BTD, (jax.tree.map(stack, *layers), keys))[0]
