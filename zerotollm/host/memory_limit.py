"""Limits on the memory of this process, as `ulimit -d`, `ulimit -v` and batch systems set them. No heavy imports.

Native code that gets no memory aborts, crashes or waits forever for a thread, without a message. Therefore the memory
that is needed is compared with the limit in advance. The kernel counts memory that is allocated but not used, such
as 8 MB of stack for each thread.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from zerotollm.errors import RunError
from zerotollm.host.cores import usable_cores


class Limit(NamedTuple):
    option: str  # of ulimit: d, data; v, all addresses, which include the libraries
    size: int
    used: int  # memory that counts against the limit now


COUNTED = {"d": "VmData", "v": "VmSize"}  # names of the used memory in /proc/self/status, in kB
LIBRARIES = {"d": (650e6, 100e6), "v": (1950e6, 150e6)}
"""Bytes for training a tiny model from its text on, and further bytes for each core, whose threads have stacks.

Measured for d: 707 MB on one core, 753 MB on two; for v: 1,952 and 2,075 MB (`python -m tests.host_memory`).
"""
LATER = {"d": (250e6, 100e6), "v": (700e6, 150e6)}
"""The part of them that is allocated after the data is prepared, for compilers, writers and their threads.

Measured with prepared data: at most 455 and 545 MB in use, of them 246 MB before.
"""


def limits() -> list[Limit]:
    """Return the limits that are set; none on a system other than Linux."""
    if sys.platform != "linux":
        return []
    import resource

    status = Path("/proc/self/status").read_text()
    set_limits = []
    for option, name in (("d", resource.RLIMIT_DATA), ("v", resource.RLIMIT_AS)):
        size, _ = resource.getrlimit(name)
        if size != resource.RLIM_INFINITY:
            used = re.search(rf"{COUNTED[option]}:\s+(\d+) kB", status)
            set_limits.append(Limit(option, size, 1024 * int(used[1]) if used else 0))
    return set_limits


def check_libraries() -> None:
    """Raise RunError, before anything starts, if Python's libraries and the compiler do not fit into a limit."""
    for limit in limits():
        _check(limit, _on_these_cores(*LIBRARIES[limit.option]), "even the smallest model")


def check_step(step_bytes: int) -> None:
    """Raise RunError, once the data is prepared, if a step that holds so many bytes does not fit into a limit."""
    for limit in limits():
        needed = limit.used + _on_these_cores(*LATER[limit.option]) + step_bytes
        _check(limit, needed, f"a step of {step_bytes / 1e6:,.0f} MB")


def _on_these_cores(constant: float, per_core: float) -> float:
    return constant + per_core * usable_cores()


def _check(limit: Limit, needed: float, purpose: str) -> None:
    if limit.size < needed:
        raise RunError(
            f"host memory is limited to {limit.size / 1e6:,.0f} MB (ulimit -{limit.option}), and training {purpose} "
            f"takes about {needed / 1e6:,.0f} MB: raise the limit (ulimit -{limit.option} {needed / 1024:.0f}, or in "
            "your batch system), then run the same command again"
        )
