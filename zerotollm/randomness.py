"""Randomness as a function of (seed, stream name, step): nothing to save, nothing to lose."""

from zlib import crc32

import jax


def stream_key(seed: int | jax.Array, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of a step of a named stream ("init", "dropout", "sample"). Streams and steps are independent."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), crc32(stream.encode())), step)
