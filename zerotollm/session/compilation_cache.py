"""Compiled programs on disk, so that a second start need not compile."""

import os

import jax

from zerotollm.data.cache_folder import data_directory
from zerotollm.data.config import DataConfig


def cache_compiled_programs(data: DataConfig) -> None:
    """Keep what XLA compiles beside the prepared data.

    JAX's own settings come first: `JAX_ENABLE_COMPILATION_CACHE=false` turns it off, and
    `JAX_COMPILATION_CACHE_DIR` puts it elsewhere.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", os.fspath(data_directory(data) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
