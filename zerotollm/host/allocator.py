"""Memory that a train step frees stays with the process, so that the next step need not fault it in again.

XLA's CPU backend allocates a step's temporary buffers anew each time. glibc gives blocks of that size back to the
kernel when they are freed, and the kernel then clears every page again, which was a large part of a step of `base`.

A step that is begun before the last one is over wants buffers of its own, and those stay too. So a CPU begins steps one
after the other, which costs no time that could be measured: the device is the host.
"""

import ctypes
import sys

LARGE_STEP = 2**17
"""Tokens of a step times model width from which on it pays; below, one arena for all threads costs more."""

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def reuse_memory(step: int) -> None:
    """For a process whose steps have so many tokens times model width; below `LARGE_STEP` nothing happens. To be called
    before jax and its threads start."""
    if step < LARGE_STEP:
        return
    keep_freed_memory()
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory, whatever its size. Says whether it agreed; elsewhere nothing happens."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = (
        (_M_MMAP_MAX, 0),
        (_M_ARENA_MAX, 1),
        (_M_TRIM_THRESHOLD, -1),  # never
        (_M_TOP_PAD, 2**26),
    )
    return all([mallopt(option, value) == 1 for option, value in settings])
