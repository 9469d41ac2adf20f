"""Random keys as a function of (seed, stream name, step): no state to save."""

from zlib import crc32

import jax
import numpy as np

Seed = int | np.unsignedinteger | np.ndarray | jax.Array


def stream_key(seed: Seed, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """Return the key of one step of a named stream ("init", "dropout", "sample"). All keys are independent."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), crc32(stream.encode())), step)
