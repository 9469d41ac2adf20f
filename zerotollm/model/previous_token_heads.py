"""Heads of the first layers that are initialized to attend to the previous tokens."""

import jax.numpy as jnp

from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import rope, rope_frequencies
from zerotollm.types import Json

PEAK = 16.0
"""Score of the planted distance, before the softmax. At a head width of 64 its weight is then about 0.9."""
KERNEL_SCALE = 0.1
"""Scale of a planted head's query and key matrices: at first the content of tokens hardly matters."""


def plant_previous_token_heads(config: TransformerConfig, params: Json) -> Json:
    """Return initial parameters, of which head h of the first layers attends to the token h + 1 before.

    The first `previous_token_heads` heads of the first `previous_token_layers` layers, or all if there are fewer, are
    planted: in the decoder and in the encoder. Only the biases of queries and keys do it, with RoPE (arXiv:2104.09864,
    equation 34). Values and outputs keep their random initialization. Previous-token heads are the first half of an
    induction circuit (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"), which a model otherwise
    has to learn.
    """
    for layer in range(config.previous_token_layers if config.previous_token_heads else 0):
        params = plant_layer(config, params, layer)
    return params


def plant_layer(config: TransformerConfig, params: Json, layer: int) -> Json:
    """Return parameters with planted heads in one layer of each side, if the side has so many."""
    name = f"layer_{layer}"
    if name in params:
        return params | {name: params[name] | {"attention": _plant(config, params[name]["attention"])}}
    sides = {
        side: plant_layer(config, params[side], layer) for side in ("encoder", "decoder") if side in params
    }
    return params | sides


def _plant(config: TransformerConfig, attention: Json) -> Json:
    """Return the parameters of an attention with planted heads, also where one of your own holds the built-in one."""
    if "query_bias" in attention:
        return attention | _planted(config, attention)
    return {
        name: _plant(config, value) if isinstance(value, dict) else value for name, value in attention.items()
    }


def _planted(config: TransformerConfig, attention: Json) -> Json:
    """Return the query and key matrices and biases of an attention with planted heads.

    The key bias is one vector for all heads. The query bias of distance d is that vector rotated by d positions
    backwards, so their product after RoPE is largest at that distance: peak x sum_i w_i cos(f_i (distance - d)), with
    weights w_i proportional to the frequencies f_i: fast rotations tell neighbours apart.
    """
    H, K, C = config.num_heads, config.num_kv_heads, config.key_width
    N = min(config.previous_token_heads, H)
    num_key_heads = -(-N // (H // K))
    frequencies_C = rope_frequencies(config, C // 2)
    weights_C = frequencies_C / frequencies_C.sum()
    length = (PEAK * C**0.5) ** 0.5
    bias_C = length * jnp.concatenate([jnp.sqrt(weights_C), jnp.zeros(C // 2)])
    queries_11NC = jnp.broadcast_to(bias_C, (1, 1, N, C))
    queries_NC = rope(config, queries_11NC, -1 - jnp.arange(N)[None])[0, 0]
    planted: Json = {}
    for name, bias_NC in (("query", queries_NC), ("key", jnp.broadcast_to(bias_C, (num_key_heads, C)))):
        Y = bias_NC.size
        kernel_XY, bias_Y = attention[name], attention[f"{name}_bias"]
        planted[name] = kernel_XY.at[:, :Y].multiply(KERNEL_SCALE)
        planted[f"{name}_bias"] = bias_Y.at[:Y].set(bias_NC.reshape(Y))
    return planted
