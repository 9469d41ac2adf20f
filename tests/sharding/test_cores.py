"""Independent computations on the cores of one CPU: in order, on the mesh of the thread that asks, and at once."""

import threading

import jax
import numpy as np
import pytest

from zerotollm.sharding import cores
from zerotollm.sharding.config import MeshShape
from zerotollm.sharding.rules import make_mesh


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)


@pytest.mark.parametrize(
    ("rows", "groups"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (6, 2), (64, 2)]
)
def test_rows_are_divided_into_equal_groups_of_two_or_more(two_cores, rows, groups):
    assert cores.num_groups(rows) == groups


def test_the_number_of_groups_is_bounded_and_divides_the_rows(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 64)
    assert [cores.num_groups(rows) for rows in (6, 8, 9, 10, 64)] == [3, 4, 3, 2, 4]
    monkeypatch.setattr(cores, "usable_cores", lambda: 1)
    assert cores.num_groups(64) == 1


def test_a_mesh_of_several_devices_keeps_its_rows_together(two_cores, monkeypatch):
    monkeypatch.setattr(cores, "on_one_cpu", lambda: False)
    assert cores.num_groups(64) == 1
    names = list(cores.map_on_cores(lambda _: threading.current_thread(), range(3)))
    assert set(names) == {threading.current_thread()}


def test_results_come_in_order_and_two_are_computed_at_once(two_cores):
    both = threading.Barrier(2, timeout=60)  # passed only if two threads are there

    def compute(number):
        both.wait()
        return 10 * number

    assert list(cores.map_on_cores(compute, range(4))) == [0, 10, 20, 30]


def test_a_single_item_needs_no_thread(two_cores):
    (thread,) = cores.map_on_cores(lambda _: threading.current_thread(), [1])
    assert thread is threading.current_thread()
    assert list(cores.map_on_cores(lambda _: threading.current_thread(), [])) == []


def test_threads_compute_on_the_mesh_of_the_caller(two_cores):
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        assert list(cores.map_on_cores(lambda _: jax.sharding.get_mesh(), range(2))) == [mesh, mesh]
    assert all(mesh.empty for mesh in cores.map_on_cores(lambda _: jax.sharding.get_mesh(), range(2)))


def test_an_error_reaches_the_caller(two_cores):
    def compute(number):
        if number == 1:
            raise ValueError("the second")
        return number

    results = cores.map_on_cores(compute, range(50))
    assert next(results) == 0
    with pytest.raises(ValueError, match="the second"):
        next(results)


def test_arrays_of_a_thread_are_those_of_the_caller(two_cores):
    square = jax.jit(lambda x: x @ x)
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    for result in cores.map_on_cores(square, [x, x, x]):
        np.testing.assert_array_equal(result, square(x))
