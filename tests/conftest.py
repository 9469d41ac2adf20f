"""Shared by all tests: implicit broadcasting of ranks is an error, as the design asks; and what XLA has compiled in
one test, or in a process that a test starts, no other compiles again."""

import os
import tempfile

# Before jax is imported, which reads them; the processes that tests start inherit them. A place that you name is kept.
# What is compiled sooner than that many seconds, such as a single operation, is not worth a file.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="zerotollm-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
