"""Caches that grow in stages, so that a step does not read slots that nothing was written to yet."""

import jax
import jax.numpy as jnp

from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import KVCache

FIRST = 64
"""Slots of the first stage; each later one has twice as many."""
LARGE = 2**26
"""Bytes of a cache from which on a step takes longer for the slots it reads in vain than a stage takes to compile."""


def cache_bytes(model: TransformerConfig, rows: int) -> int:
    """Of one slot of `rows` texts, in all layers, in float32."""
    return 4 * rows * model.num_layers * model.num_kv_heads * (model.key_width + model.head_width)


def capacities(slots: int, slot_bytes: int) -> tuple[int, ...]:
    """The slots of each stage, rising to `slots`."""
    if slots * slot_bytes < LARGE:
        return (slots,)
    stages, capacity = [], FIRST
    while 4 * capacity < 3 * slots:  # a last stage that is hardly longer is not worth a program
        stages.append(capacity)
        capacity *= 2
    return (*stages, slots)


def longer(caches: tuple[KVCache, ...], slots: int) -> tuple[KVCache, ...]:
    """With so many empty slots more."""
    return jax.tree.map(lambda x_BKSC: jnp.pad(x_BKSC, ((0, 0), (0, 0), (0, slots), (0, 0))), caches)
