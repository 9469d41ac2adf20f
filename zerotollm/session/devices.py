"""The devices that an action computes on, and the cores that compile for them."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, task_of
from zerotollm.host.allocator import reuse_memory
from zerotollm.host.gpu import prepare_gpu
from zerotollm.sharding.config import MeshShape, parse_mesh
from zerotollm.sharding.rules import Placement, make_mesh, sharding_rows


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compilers() -> ThreadPoolExecutor:
    """Threads that compile, one for each core: of pairs every width has programs of its own, and a compiler of GPU
    programs keeps few cores busy."""
    return ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="compile")


def by_shape(
    threads: ThreadPoolExecutor,
    lower: Callable[[Any], Any],
    shapes: Sequence[Any],
    options: dict[str, Any] | None = None,
) -> dict[tuple[int, ...], Future[Any]]:
    """The program of every shape of batch, compiled with XLA's `options` of what `lower` gives for the batch."""
    # Traced here: Python does one thing at a time, and what comes first is waited for longest.
    return {batch["inputs"].shape: threads.submit(lower(batch).compile, options) for batch in shapes}


@contextmanager
def reading_on_mesh(experiment: Experiment) -> Iterator[Any]:
    """Of a run that is read, or of seeds that are trained in memory: programs in the block are for the mesh of
    `train.mesh`, or else for the first device.

    Gives a `zerotollm.sharding.rules.Placement`. Raises UsageError where the mesh is not made of the devices here.
    """
    prepare_gpu()
    text = experiment.train.mesh
    mesh = make_mesh(parse_mesh(text), None if text else jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield Placement(mesh)


@contextmanager
def computing_on_mesh(experiment: Experiment) -> Iterator[Any]:
    """Starts jax; while the block runs, programs are for the mesh of `train.mesh`. Gives a
    `zerotollm.sharding.rules.Placement`.

    Raises UsageError where the mesh is not made of the devices that are here, or does not divide the batch.
    """
    shape = experiment.data
    reuse_memory(shape.batch_size * shape.context * experiment.model.width)
    prepare_gpu()
    text = experiment.train.mesh
    asked = parse_mesh(text) if text else MeshShape(data=len(jax.devices()))
    mesh = make_mesh(asked)
    check_rows(experiment, asked)
    with jax.set_mesh(mesh):
        yield Placement(mesh, experiment.train.micro_batches)


def check_rows(experiment: Experiment, asked: MeshShape) -> None:
    """Raises UsageError where the mesh does not divide the batch."""
    shape, parts = experiment.data, experiment.train.micro_batches
    padded = task_of(experiment) == "translate"  # batches of pairs get rows of padding
    if shape.batch_size % (asked.rows * parts) and not padded:
        raise UsageError(
            f"data.batch_size {shape.batch_size} does not go to {asked.rows} parts (train.mesh {asked})"
            + (f" in {parts} micro-batches" if parts > 1 else "")
            + f": make it a multiple of {asked.rows * parts}, or take another mesh"
        )


def mesh_lines(params: Any, mesh: MeshShape) -> list[str]:
    """The table of what each device has of the parameters, for people; nothing on one device."""
    if mesh.size == 1:
        return []
    rows = [("parameters", "shape", "split over", "bytes on a device")]
    rows += [(*row[:3], f"{row[3]:,}") for row in sharding_rows(params, mesh)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"mesh {mesh}, {mesh.size} devices"] + [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3].rjust(17)])
        for row in rows
    ]
