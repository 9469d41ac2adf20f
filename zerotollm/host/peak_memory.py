"""The most memory that this process has held. No heavy imports: PyTorch's side of `bench` must not pay for jax."""

import resource
import sys


def peak_memory_bytes() -> int:
    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
