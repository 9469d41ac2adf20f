"""A limit on the memory of this process, as `ulimit -d`, `ulimit -v` and batch systems set it.

Native code that gets no memory ends the process with an abort or a segmentation fault, or waits for a thread that never
started: nothing can be said then, nor caught. So what is needed is compared with the limit before. What the kernel
counts is what was asked for, used or not: 8 MB of stack for each thread alone. No heavy imports.
"""

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from zerotollm.errors import RunError


class Limit(NamedTuple):
    """The tightest limit, in bytes."""

    option: str
    """of ulimit: d, data; v, all addresses, which has to hold the libraries themselves too"""
    size: int
    used: int
    """of it, now"""


COUNTED = {"d": "VmData", "v": "VmSize"}
"""What Linux says of this process in /proc/self/status, in kB."""
LIBRARIES = {"d": (650e6, 100e6), "v": (1950e6, 150e6)}
"""Bytes with which a model of no size is trained from its text on, and for each core, whose threads have stacks. Of d
707 MB were measured on one core and 753 on two, of v 1,952 and 2,075 (`python -m tests.host_memory`)."""
LATER = {"d": (250e6, 100e6), "v": (700e6, 150e6)}
"""Of them, what comes after the data was prepared, for compilers, writers and their threads; prepared 455 and 545 MB
were in use at most, and 246 before."""


def limits() -> list[Limit]:
    """Those that are set; none on a system that is not Linux."""
    if sys.platform != "linux":
        return []
    import resource

    status = Path("/proc/self/status").read_text()
    found = []
    for option, name in (("d", resource.RLIMIT_DATA), ("v", resource.RLIMIT_AS)):
        size, _ = resource.getrlimit(name)
        if size != resource.RLIM_INFINITY:
            used = re.search(rf"{COUNTED[option]}:\s+(\d+) kB", status)
            found.append(Limit(option, size, 1024 * int(used[1]) if used else 0))
    return found


def check_libraries() -> None:
    """Before anything is begun. Raises RunError where Python's libraries and the compiler do not fit into a limit."""
    for limit in limits():
        needed = _on_these_cores(LIBRARIES[limit.option])
        if limit.size < needed:
            raise _refused(limit, needed, "even the smallest model")


def check_step(step_bytes: int) -> None:
    """Once the data is prepared. Raises RunError where a step that holds so many bytes does not fit into a limit.

    Where it does, and an array still finds no room, XLA says so, and `zerotollm.session.out_of_memory` what helps: it
    is the small pieces of memory without which native code aborts.
    """
    for limit in limits():
        needed = limit.used + _on_these_cores(LATER[limit.option]) + step_bytes
        if limit.size < needed:
            raise _refused(limit, needed, f"a step of {step_bytes / 1e6:,.0f} MB")


def _on_these_cores(constant_and_each: tuple[float, float]) -> float:
    constant, each = constant_and_each
    return constant + each * len(os.sched_getaffinity(0))


def _refused(limit: Limit, needed: float, of_what: str) -> RunError:
    return RunError(
        f"host memory is limited to {limit.size / 1e6:,.0f} MB (ulimit -{limit.option}), and training {of_what} takes "
        f"about {needed / 1e6:,.0f} MB: raise the limit (ulimit -{limit.option} {needed / 1024:.0f}, or in your batch "
        "system), then run the same command again"
    )
