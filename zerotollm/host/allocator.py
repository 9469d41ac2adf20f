"""Memory that a train step frees stays with the process, and the next step need not fault it in again.

XLA's CPU backend allocates the temporary buffers of every step anew, and glibc returns freed blocks of that size to the
kernel, which clears every page again: a large part of a step of `base`. Steps then run one after the other, since
overlapping ones need buffers of their own. This costs no measurable time: the device is the host.
"""

import ctypes
import sys
from collections.abc import Callable

import jax

from zerotollm.host.cores import usable_cores

LARGE_STEP = 2**16
"""Tokens of a step times model width from which on this pays on several cores: on one core it always does."""

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def reuse_memory(step: int) -> None:
    """Set up a process, before jax starts its threads, whose steps have `step` tokens times model width."""
    if step >= LARGE_STEP or usable_cores() == 1:
        keep_freed_memory()
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory of any size. Return whether it agreed; other systems have no such setting."""
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    # -1: never trim.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**26))
    return all([mallopt(option, value) == 1 for option, value in settings])


def return_freed_memory() -> None:
    """Give the kernel what was freed: compilers leave much of it. The next step takes what it needs anew, once."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function that glibc has, or None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
