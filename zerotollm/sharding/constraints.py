"""Where the numbers of a computation lie when several devices share it.

A program is written once, for whole arrays. Under `jax.set_mesh` XLA's partitioner gives each device its part; what
stands here only says where arrays lie at a few places from which the rest follows. On one device it says nothing, and
the program is the one that it would be without.
"""

import math

import jax
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "tensor")
"""Of every mesh; see `zerotollm.sharding.config.MeshShape`."""
ROWS = ("data", "fsdp")
"""Axes over which the rows of a batch are split."""


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """The same array, its first axes split over these axes of the mesh in use. What is None, left out or not divided
    by them, as the one row of a text that is written, every device has whole."""
    if num_devices() == 1:
        return x
    mesh = jax.sharding.get_abstract_mesh()
    spec = []
    for size, axis in zip(x.shape, axes, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        spec.append(axis if size % math.prod(mesh.shape[name] for name in names) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def row_shards() -> int:
    """Parts that the rows of a batch are split in; 1 where there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def num_devices(axes: tuple[str, ...] = AXES) -> int:
    """Along these axes of the mesh in use; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)


def axes_for(items: int) -> tuple[str, ...]:
    """Axes over which so many items go with at most a quarter more of padding; the more devices, the better."""
    for axes in (AXES, ("fsdp", "tensor"), ("fsdp",), ("tensor",)):
        if -items % num_devices(axes) <= items / 4:
            return axes
    return ()
