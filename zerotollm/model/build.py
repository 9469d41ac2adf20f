"""A net from its configuration, and fresh parameters for it."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from zerotollm.model.blocks import Block
from zerotollm.model.compute_config import PLAIN, ComputeConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.transformer import Inputs, Readout, Transformer
from zerotollm.randomness import Seed, stream_key

Net = Transformer | EncoderDecoder
"""A model: `net.apply({"params": params}, inputs)` returns a `Readout`, `method="decode"` continues from KV caches, and
`net.config` is its resolved configuration."""
Params = dict
"""Nested dict of float32 arrays."""


def build_net(
    config: TransformerConfig, compute: ComputeConfig = PLAIN, block: Callable[..., nn.Module] = Block
) -> Net:
    """Return the net of a resolved configuration, computed as `compute`, resolved too, says."""
    kind = EncoderDecoder if config.encoder_layers else Transformer
    return kind(config, compute, block)


def init_params(net: Net, seed: Seed) -> Params:
    """Return fresh parameters of `seed`. Works under `jax.jit`, `jax.vmap` and `jax.eval_shape`."""
    token_11 = jnp.zeros((1, 1), jnp.int32)
    inputs = {"inputs": token_11, "sources": token_11, "source_mask": token_11 == 0}
    return net.init(stream_key(seed, "init", 0), inputs)["params"]


def apply_net(net: Net, params: Params, inputs: Inputs, **options: Any) -> Readout:
    """Return `net.apply({"params": params}, inputs, **options)` with its type, which flax does not know."""
    return cast(Readout, net.apply({"params": params}, inputs, **options))
