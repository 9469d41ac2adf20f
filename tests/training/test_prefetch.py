"""Batches come in order from any step on, ahead of time; metrics are handed on in order, behind."""

import threading
import time
from contextlib import closing

import jax.numpy as jnp
import pytest

from zerotollm.training.prefetch import AHEAD, BEHIND, DeferredMetrics, prefetched


class Dataset:
    """`dataset[step]` is the step; notes what was asked for."""

    def __init__(self, broken: int = -1):
        self.asked: list[int] = []
        self.broken = broken

    def __getitem__(self, step: int) -> int:
        self.asked.append(step)
        if step == self.broken:
            raise OSError("the disk is gone")
        return step


def test_batches_are_yielded_once_in_order_from_any_step():
    dataset = Dataset()
    assert list(prefetched(dataset, 5, 12, lambda x: -x)) == [-s for s in range(5, 12)]
    assert dataset.asked == list(range(5, 12))
    assert list(prefetched(dataset, 7, 7, lambda x: x)) == []


def test_batches_are_prefetched_but_not_all_at_once():
    dataset = Dataset()
    with closing(prefetched(dataset, 0, 100, lambda x: x)) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(dataset.asked) < 1 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert dataset.asked == list(range(1 + AHEAD))
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_an_exception_is_raised_at_its_step():
    batches = prefetched(Dataset(broken=2), 0, 5, lambda x: x)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_metrics_are_read_later_in_order():
    seen: list[tuple[int, dict[str, float]]] = []
    behind = DeferredMetrics(lambda step, values: seen.append((step, values)))
    for step in range(1, 6):
        behind.add(step, {"loss": jnp.float32(step)})
        assert [s for s, _ in seen] == list(range(1, step - BEHIND + 1))
    behind.drain()
    assert seen == [(step, {"loss": float(step)}) for step in range(1, 6)]
