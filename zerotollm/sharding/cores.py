"""Independent computations at once on the cores of one CPU.

XLA's CPU backend computes each small operation on one core, and the next token of a few texts takes nothing but small
operations. So texts are generated in groups, each in a thread.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import jax

from zerotollm.host.cores import usable_cores
from zerotollm.sharding.constraints import on_one_cpu

MOST = 4
"""Computations at once, since each takes memory of its own. More than two are not measured."""
FEWEST_ROWS = 2
"""Fewest rows of a group: a step of one row takes hardly less time than one of two."""

T = TypeVar("T")
U = TypeVar("U")


def num_groups(rows: int) -> int:
    """Return the number of equal groups of so many rows that are computed at once: 1 unless they are on one CPU."""
    most = min(MOST, usable_cores(), rows // FEWEST_ROWS) if on_one_cpu() else 1
    return next((groups for groups in range(most, 1, -1) if rows % groups == 0), 1)


def map_on_cores(function: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
    """Yield `function(item)` of every item, in order; on one CPU several at once, in threads on the same mesh."""
    workers = min(MOST, usable_cores(), len(items)) if on_one_cpu() else 1
    if workers < 2:
        yield from map(function, items)
        return
    mesh = jax.sharding.get_mesh()

    def compute(item: T) -> U:
        with nullcontext() if mesh.empty else jax.set_mesh(mesh):  # a thread begins without one
            return function(item)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        yield from threads.map(compute, items)
