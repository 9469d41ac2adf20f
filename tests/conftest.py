"""Shared by all tests: implicit broadcasting of ranks is an error, as the design asks; what XLA has compiled in one
test, or in a process that a test starts, no other compiles again; a process keeps to one core where it
can; and no example of a property has a deadline, unless its test says so."""

import gc
import os
import tempfile
from importlib.metadata import version

# Before jax is imported, which reads them; the processes that tests start inherit them. A place that you name is kept.
# What is compiled sooner than that many seconds, such as a single operation, is not worth a file.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="zerotollm-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Programs run for moments here, and compilation is most of the suite's time: without LLVM's optimizations, the emitters
# of fused loops in MLIR, and a split of each program into parts compiled apart, it takes less than half.
# jax 0.12 knows no other emitters, and ends at the flag.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
# Threads for small matrices wait by spinning: where several processes share the cores, fits take ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import jax

# Tracing makes many small objects, and each full collection visits all that a long process holds.
gc.set_threshold(100_000)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A busy machine is no error; tests of what may hang set a deadline of their own.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
