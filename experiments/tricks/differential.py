"""Differential attention (arXiv:2410.05258): the difference of two softmaxes, so that common noise cancels."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.layers import Attention, Norm, attention_weights, mix_values

INITIAL = 0.8
"""lambda at first, in every layer: a constant that the paper tried too, instead of one that grows with depth"""


class DifferentialAttention(Attention):
    """Attention by softmax(q1 k1) - lambda softmax(q2 k2), normalized per head (equations 1 to 3).

    q1 and q2 are the even and the odd features of a query: rope pairs features of one parity. So there are as many
    heads, parameters and products as in `Attention`.
    """

    def attend(
        self, q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, mask_BTS: jax.Array
    ) -> jax.Array:
        """Return the normalized difference of the values mixed by both, (B, H, T, C)."""
        C = q_BHTC.shape[-1] // 2
        products = []
        for half in ("first", "second"):
            query_C, key_C = (
                self.param(f"lambda_{side}_{half}", nn.initializers.normal(0.1), (C,))
                for side in ("query", "key")
            )
            products.append(jnp.exp(jnp.dot(query_C, key_C)))
        weight = products[0] - products[1] + INITIAL
        first_BHTS, second_BHTS = (
            attention_weights(q_BHTC[..., half::2], k_BKSC[..., half::2], mask_BTS) for half in (0, 1)
        )
        mixed_BHTC = mix_values(first_BHTS - weight * second_BHTS, v_BKSC)
        return (1 - INITIAL) * Norm(self.config, name="head_norm")(mixed_BHTC)


def model(experiment: Experiment) -> Net:
    """Return the built-in net with differential attention, which is plain: other kernels have one softmax."""
    compute = replace(experiment.compute, attention="plain")
    return build_net(experiment.model, compute, partial(Block, attention=DifferentialAttention))
