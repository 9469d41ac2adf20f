"""The host's side of the train loop: batches are prefetched, metrics are read a few steps later."""

from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, SupportsFloat, TypeVar

HostBatch = TypeVar("HostBatch", covariant=True)
PlacedBatch = TypeVar("PlacedBatch")

AHEAD = 2
"""Batches prepared before they are needed."""
BEHIND = 2
"""Steps dispatched before the metrics of the first are read: neither device nor host waits."""


class Dataset(Protocol[HostBatch]):
    """Batches by step."""

    def __getitem__(self, step: int, /) -> HostBatch: ...


def prefetched(
    dataset: Dataset[HostBatch], start: int, stop: int, place: Callable[[HostBatch], PlacedBatch]
) -> Generator[PlacedBatch, None, None]:
    """Yield `place(dataset[step])` for every step from `start` to `stop`, prepared by a second thread.

    The dataset is a pure function of the step: there is nothing to save. Exceptions in the thread are raised when their
    batch is due.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:

        def make(step: int) -> Future[PlacedBatch]:
            return thread.submit(lambda: place(dataset[step]))

        ready = deque(map(make, range(start, min(start + AHEAD, stop))))
        for step in range(start, stop):
            batch = ready.popleft().result()
            if step + AHEAD < stop:
                ready.append(make(step + AHEAD))
            yield batch


class DeferredMetrics:
    """Passes metrics on in order, some steps late, since the device may still be computing them."""

    def __init__(self, read: Callable[[int, dict[str, float]], None], behind: int = BEHIND):
        self._read, self._behind = read, behind
        self._waiting: deque[tuple[int, Mapping[str, SupportsFloat]]] = deque()

    def add(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Add the metrics of a step, scalars on the device."""
        self._waiting.append((step, metrics))
        if len(self._waiting) > self._behind:
            self._read_oldest()

    def drain(self) -> None:
        """Wait for the device and pass on all remaining metrics."""
        while self._waiting:
            self._read_oldest()

    def _read_oldest(self) -> None:
        step, metrics = self._waiting.popleft()
        self._read(step, {name: float(value) for name, value in metrics.items()})
