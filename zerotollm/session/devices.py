"""The devices that an action computes on, and the threads that compile for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import jax
from jax.stages import Compiled, Lowered

from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, task_of
from zerotollm.host.allocator import reuse_memory
from zerotollm.host.cores import usable_cores
from zerotollm.host.gpu import prepare_gpu
from zerotollm.model.build import Params
from zerotollm.sharding.config import MeshShape, parse_mesh
from zerotollm.sharding.rules import Placement, make_mesh, sharding_rows
from zerotollm.types import Json

BatchShapes = Mapping[str, jax.ShapeDtypeStruct]
"""shape and sharding of every array of a batch"""


def compilers() -> ThreadPoolExecutor:
    """Return threads to compile in, one for each core: XLA compiles one program mostly on one core."""
    return ThreadPoolExecutor(max(2, usable_cores()), thread_name_prefix="compile")


def by_shape(
    threads: ThreadPoolExecutor,
    lower: Callable[[BatchShapes], Lowered],
    shapes: Sequence[BatchShapes],
    options: Json | None = None,
) -> dict[tuple[int, ...], Future[Compiled]]:
    """Start to compile `lower(batch)` for every shape of a batch with XLA's `options`; return the programs by shape."""
    # Traced here: Python runs one thread at a time, and the first program is the one that is waited for.
    return {batch["inputs"].shape: threads.submit(lower(batch).compile, options) for batch in shapes}


@contextmanager
def reading_on_mesh(experiment: Experiment) -> Iterator[Placement]:
    """Give the placement on the mesh of `train.mesh`, or on the first device, to read a run or train in memory.

    Programs in the block are for that mesh. Raises UsageError for a mesh that does not consist of the devices here.
    """
    prepare_gpu()
    text = experiment.train.mesh
    mesh = make_mesh(parse_mesh(text), None if text else jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield Placement(mesh)


@contextmanager
def computing_on_mesh(experiment: Experiment) -> Iterator[Placement]:
    """Start jax to train, and give the placement on the mesh of `train.mesh`, or on all devices.

    Programs in the block are for that mesh. Raises UsageError for a mesh that does not consist of the devices here or
    does not divide the batch.
    """
    data, train = experiment.data, experiment.train
    reuse_memory(data.batch_size * data.context * experiment.model.width)
    prepare_gpu()
    shape = parse_mesh(train.mesh) if train.mesh else MeshShape(data=len(jax.devices()))
    mesh = make_mesh(shape)
    check_rows(experiment, shape)
    with jax.set_mesh(mesh):
        yield Placement(mesh, train.micro_batches)


def check_rows(experiment: Experiment, mesh: MeshShape) -> None:
    """Raise UsageError if the mesh does not divide the batch."""
    batch_size, micro_batches = experiment.data.batch_size, experiment.train.micro_batches
    multiple = mesh.rows * micro_batches
    padded = task_of(experiment) == "translate"  # batches of pairs get rows of padding
    if batch_size % multiple and not padded:
        raise UsageError(
            f"data.batch_size {batch_size} does not divide into {mesh.rows} parts (train.mesh {mesh})"
            + (f" in {micro_batches} micro-batches" if micro_batches > 1 else "")
            + f": make it a multiple of {multiple}, or choose another mesh"
        )


def mesh_lines(params: Params, mesh: MeshShape) -> list[str]:
    """Return a table of the parameters on each device, as lines; none for one device."""
    if mesh.size == 1:
        return []
    rows = [("parameters", "shape", "split over", "bytes on a device")]
    rows += [(*row[:3], f"{row[3]:,}") for row in sharding_rows(params, mesh)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [f"mesh {mesh}, {mesh.size} devices"] + [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3].rjust(17)])
        for row in rows
    ]
