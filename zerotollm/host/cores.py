"""How many cores a process may use, and how busy they are. No heavy imports."""

import os
import sys

BUSY = 0.25
"""Load average per core from which on a machine is called busy."""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def load_average() -> float | None:
    """Return the mean number of threads that wanted to compute in the last minute; None where nobody counts them."""
    return None if sys.platform == "win32" else os.getloadavg()[0]


def is_busy(load: float | None, cores: int) -> bool:
    """Return whether other work is likely to slow down what is measured now."""
    return load is not None and load > BUSY * cores
