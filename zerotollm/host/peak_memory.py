"""The memory of this process: now, and at most so far. No heavy imports, for PyTorch's side of `bench`."""

import os
import sys


def peak_memory_bytes() -> int:
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the memory that this process holds now; its peak where only that is known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")
