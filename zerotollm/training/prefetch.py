"""The host's side of the train loop: batches are made ahead of the device, metrics are read behind it."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

Batch = TypeVar("Batch")

AHEAD = 2
"""Batches made before they are asked for."""
BEHIND = 2
"""Steps given to the device before the metrics of the first are read: neither device nor host waits."""


class Dataset(Protocol):
    """Batches by step."""

    def __getitem__(self, step: int, /) -> Any: ...


def prefetched(
    dataset: Dataset, start: int, stop: int, place: Callable[[Any], Batch]
) -> Generator[Batch, None, None]:
    """`place(dataset[step])` for every step from `start` to `stop`, made by a second thread `AHEAD` early.

    The dataset is a pure function of the step, so nothing here needs to be saved. What the thread raises is
    raised where its batch is asked for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        make = lambda step: thread.submit(lambda: place(dataset[step]))  # noqa: E731
        ready = deque(make(step) for step in range(start, min(start + AHEAD, stop)))
        for step in range(start, stop):
            batch = ready.popleft().result()
            if step + AHEAD < stop:
                ready.append(make(step + AHEAD))
            yield batch


class DeferredMetrics:
    """Metrics that the device may still be computing, handed on in order `BEHIND` steps later."""

    def __init__(self, read: Callable[[int, dict[str, float]], None]):
        self._read = read
        self._waiting: deque[tuple[int, Any]] = deque()

    def add(self, step: int, metrics: Any) -> None:
        """`metrics`: dict of scalars on the device, of the step that makes it `step` steps in all."""
        self._waiting.append((step, metrics))
        if len(self._waiting) > BEHIND:
            self._read_oldest()

    def drain(self) -> None:
        """Waits for the device and hands on all that is left."""
        while self._waiting:
            self._read_oldest()

    def _read_oldest(self) -> None:
        step, metrics = self._waiting.popleft()
        self._read(step, {name: float(value) for name, value in metrics.items()})
