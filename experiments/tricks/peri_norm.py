"""Peri-LN (arXiv:2502.02692): a norm after each sub-layer too, before it is added to the residual stream."""

from functools import partial

import flax.linen as nn
import jax

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Attention, FeedForward, KVCache, normalize, residual_gain


def output_norm(module: nn.Module, config: TransformerConfig, x_BTD: jax.Array) -> jax.Array:
    """Return the norm of a sub-layer's output. Its scale begins where the base's outputs have theirs."""
    scale_D = module.param(
        "output_scale", nn.initializers.constant(residual_gain(config)), (x_BTD.shape[-1],)
    )
    return normalize(config, x_BTD, scale_D)


class NormedAttention(nn.Module):
    """`Attention` with a norm of its output."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, *inputs, **options) -> tuple[jax.Array, KVCache]:
        """Return the normalized output (B, T, D), and the keys and values."""
        out_BTD, kv = Attention(self.config, name="inner")(x_BTD, *inputs, **options)
        return output_norm(self, self.config, out_BTD), kv


class NormedFeedForward(nn.Module):
    """`FeedForward` with a norm of its output."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return the normalized output (B, T, D)."""
        return output_norm(self, self.config, FeedForward(self.config, name="inner")(x_BTD))


def model(experiment: Experiment) -> Net:
    """Return the built-in net with both sub-layers normalized at their end."""
    block = partial(Block, attention=NormedAttention, feed_forward=NormedFeedForward)
    return build_net(experiment.model, experiment.compute, block)
