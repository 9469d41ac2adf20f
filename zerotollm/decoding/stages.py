"""Caches that grow in stages, so that a step does not read slots that nothing was written to yet."""

from zerotollm.model.config import TransformerConfig

FIRST = 64
"""Slots of the first stage; each later one has twice as many."""
LARGE = 2**24
"""Bytes of a cache from which on reading it takes long enough for a program of its own a stage."""


def cache_bytes(model: TransformerConfig, rows: int) -> int:
    """Of one slot of `rows` texts, in all layers, in float32."""
    return 4 * rows * model.num_layers * model.num_kv_heads * (model.key_width + model.head_width)


def capacities(slots: int, slot_bytes: int) -> list[int]:
    """The slots of each stage, rising to `slots`."""
    if slots * slot_bytes < LARGE:
        return [slots]
    stages, capacity = [], FIRST
    while 4 * capacity < 3 * slots:  # a last stage that is hardly longer is not worth a program
        stages.append(capacity)
        capacity *= 2
    return [*stages, slots]
