"""How busy this machine is. No heavy imports."""

import os
import sys

BUSY = 0.25
"""Load average per core from which on a machine is called busy."""


def load_average() -> float | None:
    """Return the mean number of threads that wanted to compute in the last minute; None where nobody counts them."""
    return None if sys.platform == "win32" else os.getloadavg()[0]


def is_busy(load: float | None, cores: int) -> bool:
    """Return whether other work is likely to slow down what is measured now."""
    return load is not None and load > BUSY * cores
