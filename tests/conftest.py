"""Shared by all tests: implicit broadcasting of ranks is an error, as the design asks."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
