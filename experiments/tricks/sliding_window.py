"""Sliding-window attention (Mistral, arXiv:2310.06825, section 2): a token attends to the last 64 only."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.layers import Attention, KVCache

WINDOW = 64
"""tokens that a query attends to, its own included"""


def window_mask(length: int, num_keys: int, slot: jax.Array | int, window: int) -> jax.Array:
    """Return True where a query in slot t may attend to slot s: s > t - window. The shape is (1 or B, T, S).

    The queries are in the slots from `slot` on, which is a number or (B,); slots are in the order of the text.
    """
    first_B11 = jnp.asarray(slot).reshape(-1, 1, 1)
    query_BT1 = first_B11 + jnp.arange(length)[None, :, None]
    return jnp.arange(num_keys)[None, None] > query_BT1 - window


class WindowAttention(Attention):
    """Attention to the last `WINDOW` tokens."""

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, mask_BTS: jax.Array, positions_BT: jax.Array, **options
    ) -> tuple[jax.Array, KVCache]:
        """Return what `Attention` returns, with the mask narrowed to the window."""
        near_BTS = window_mask(x_BTD.shape[1], mask_BTS.shape[-1], options.get("slot", 0), WINDOW)
        return super().__call__(x_BTD, mask_BTS & near_BTS, positions_BT, **options)


def model(experiment: Experiment) -> Net:
    """Return the built-in net with a window in every layer. Attention is plain: all scores are computed."""
    compute = replace(experiment.compute, attention="plain")
    return build_net(experiment.model, compute, partial(Block, attention=WindowAttention))
