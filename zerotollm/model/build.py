"""Build a net from its configuration, initialize its parameters, and decode with it."""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.model.blocks import Block, EncoderOutput
from zerotollm.model.compute_config import PLAIN, ComputeConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.model.encoder_decoder import EncoderDecoder
from zerotollm.model.layers import KVCache
from zerotollm.model.previous_token_heads import plant_previous_token_heads
from zerotollm.model.transformer import Inputs, Readout, Transformer
from zerotollm.randomness import Seed, stream_key
from zerotollm.types import Json

Net = Transformer | EncoderDecoder
"""A model. `net.apply({"params": params}, inputs)` returns a `Readout`; `net.config` is its resolved configuration."""
Params = Json
"""Nested dict of float32 arrays."""


def build_net(
    config: TransformerConfig, compute: ComputeConfig = PLAIN, block: Callable[..., nn.Module] = Block
) -> Net:
    """Return the net of a resolved configuration. `compute`, resolved too, sets precision and memory."""
    kind = EncoderDecoder if config.architecture == "encoder-decoder" else Transformer
    return kind(config, compute, block)


def init_params(net: Net, seed: Seed) -> Params:
    """Return initial parameters. Works under `jax.jit`, `jax.vmap` and `jax.eval_shape`."""
    token_11 = jnp.zeros((1, 1), jnp.int32)
    inputs = {"inputs": token_11, "sources": token_11, "source_mask": token_11 == 0}
    params = cast(Params, net.init(stream_key(seed, "init", 0), inputs)["params"])
    return plant_previous_token_heads(net.config, params)


def apply_net(net: Net, params: Params, inputs: Inputs, **options: Any) -> Readout:
    """Return `net.apply({"params": params}, inputs, **options)` with its type, which flax does not know."""
    return cast(Readout, net.apply({"params": params}, inputs, **options))


def decode(
    net: Net,
    params: Params,
    tokens_BT: jax.Array,
    caches: tuple[KVCache, ...],
    *encoder: EncoderOutput,
    **slots: Any,
) -> tuple[Readout, tuple[KVCache, ...]]:
    """Return the readout of tokens that follow the KV caches, and the caches with them: see the nets' `decode`."""
    output = net.apply({"params": params}, tokens_BT, caches, *encoder, method="decode", **slots)
    return cast(tuple[Readout, tuple[KVCache, ...]], output)
