"""Memory of large steps: freed blocks are kept, which glibc grants, and a CPU begins one step at a time."""

import platform
import subprocess
import sys

import pytest

from zerotollm.host.cores import usable_cores

PROGRAM = """
import resource, sys
from zerotollm.host.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):
    block = bytearray(b"x" * 2**26)  # written to, so that every page is touched
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_not_faulted_in_again():
    assert page_faults("keep") < page_faults("leave") / 4


RETURNED = """
from pathlib import Path
from zerotollm.host.allocator import keep_freed_memory, return_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
keep_freed_memory()
before = resident()
blocks = [bytearray(10_000) for _ in range(20_000)]
most = resident() - before
del blocks[1::2], blocks[::1]
print(round((resident() - before) / most, 2), end=" ")
return_freed_memory()
print(round((resident() - before) / most, 2))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_freed_memory_is_returned_when_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    kept, returned = map(float, done.stdout.split())
    assert kept > 0.9
    assert returned < 0.2


ONE_AT_A_TIME = """
import os, sys
from zerotollm.host.allocator import LARGE_STEP, reuse_memory
if sys.argv[1] == "small step on one core":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
reuse_memory(LARGE_STEP if sys.argv[1] == "large step" else 1)
import jax
import jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
work = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda i, x: x @ x, x)).lower(jnp.eye(1024)).compile()
print(work(jnp.eye(1024)).is_ready())
"""


ON_ONE_CORE = pytest.param(
    "small step on one core",
    "True",
    marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux can take cores from a process"),
)


@pytest.mark.parametrize(
    ("word", "ready"), [("large step", "True"), ON_ONE_CORE, ("small step", str(usable_cores() == 1))]
)
def test_a_large_step_is_over_when_the_next_begins(word, ready):
    done = subprocess.run(
        [sys.executable, "-c", ONE_AT_A_TIME, word], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ready
