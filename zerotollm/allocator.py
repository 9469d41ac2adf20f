"""Memory that a train step frees stays with the process, so that the next step need not fault it in again.

XLA's CPU backend allocates a step's temporary buffers anew each time. glibc gives blocks of that size back to the
kernel when they are freed, and the kernel then faults in and clears every page again, which took a good part of a
step of `base`.
"""

import ctypes
import sys

LARGE_STEP = 2**17
"""Tokens of a step times model width from which on it pays; below, one arena for all threads costs more."""

HEAP = 2**31
"""Bytes of address space laid out for huge pages at once; only what is touched becomes memory."""

# From glibc's malloc.h and Linux's mman.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_MADV_HUGEPAGE = 14


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory, whatever its size. Says whether it agreed; elsewhere nothing happens.

    Peak memory is hardly more, since every step needs the same buffers again. To be called before threads start.
    """
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
    agreed = all([mallopt(option, value) == 1 for option, value in settings])
    if agreed:
        _ask_for_huge_pages()
    return agreed


def _ask_for_huge_pages() -> None:
    """The heap's next `HEAP` bytes come in pages of 2 MiB where the kernel has any: fewer misses of the TLB."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    block = libc.malloc(HEAP)  # extends the heap; freed, it stays the heap's, which is never trimmed
    if block:
        page = -(-block // 2**21) * 2**21
        libc.madvise(page, block + HEAP - page, _MADV_HUGEPAGE)  # refused or not, all works as before
        libc.free(block)
