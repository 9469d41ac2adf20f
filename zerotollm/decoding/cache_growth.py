"""KV caches that grow in stages: early steps do not read slots that are still empty."""

import jax
import jax.numpy as jnp

from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import KVCache

FIRST = 64
"""Slots of the first stage; each later stage has twice as many."""
LARGE = 2**25
"""Bytes of a cache from which reading empty slots takes longer than compiling another stage."""


def cache_bytes(model: TransformerConfig, rows: int) -> int:
    """Return the bytes of one slot of `rows` texts, in all layers, in float32."""
    m = model
    return 4 * rows * m.num_layers * m.num_kv_heads * (m.key_width + m.head_width)


def capacities(slots: int, slot_bytes: int) -> tuple[int, ...]:
    """Return the slots of each stage, increasing to `slots`."""
    if slots * slot_bytes < LARGE:
        return (slots,)
    stages, capacity = [], FIRST
    while 4 * capacity < 3 * slots:  # a last stage hardly larger than this is not worth compiling
        stages.append(capacity)
        capacity *= 2
    return (*stages, slots)


def empty_caches(model: TransformerConfig, rows: int, slots: int) -> tuple[KVCache, ...]:
    """Return a KV cache of zeros for each layer."""

    def zeros(width: int) -> jax.Array:
        return jnp.zeros((rows, model.num_kv_heads, slots, width))

    return tuple(KVCache(zeros(model.key_width), zeros(model.head_width)) for _ in range(model.num_layers))


def grow(caches: tuple[KVCache, ...], slots: int) -> tuple[KVCache, ...]:
    """Return the caches with this many empty slots more."""
    return jax.tree.map(lambda x_BKSC: jnp.pad(x_BKSC, ((0, 0), (0, 0), (0, slots), (0, 0))), caches)
