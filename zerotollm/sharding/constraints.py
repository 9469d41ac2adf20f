"""Sharding of arrays inside a computation.

A program is written once, for arrays of all devices together. Under `jax.set_mesh` XLA's partitioner divides it among
the devices. The constraints here fix the sharding at a few places, and the rest follows. On one device they do nothing.
"""

import math

import jax
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "tensor")  # axes of every mesh; see `zerotollm.sharding.config.MeshShape`
ROWS = ("data", "fsdp")  # axes over which the rows of a batch are split


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Return the array with its first axes split over these axes of the current mesh, where they divide it."""
    if num_devices() == 1:
        return x
    mesh = jax.sharding.get_abstract_mesh()
    spec = []
    for size, axis in zip(x.shape, axes, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        spec.append(axis if size % math.prod(mesh.shape[name] for name in names) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def num_devices(axes: tuple[str, ...] = AXES) -> int:
    """Return the number of devices along these axes of the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in axes)


def row_shards() -> int:
    return num_devices(ROWS)


def concurrent_parts(rows: int) -> int:
    """Return the number of parts in which to compute `rows` independent products: 2 on one CPU, if that divides them.

    XLA's CPU backend computes a batch of small products on one core. Two batches run at once on two cores, and more of
    them are slower. Every row is computed as before, bit for bit.
    """
    return 2 if on_one_cpu() and rows % 2 == 0 else 1


def on_one_cpu() -> bool:
    """Return whether programs are for one device, and that a CPU."""
    return num_devices() == 1 and jax.default_backend() == "cpu"


def axes_for(items: int) -> tuple[str, ...]:
    """Return the axes with the most devices that share `items` with at most a quarter of padding."""
    for axes in (AXES, ("fsdp", "tensor"), ("fsdp",), ("tensor",)):
        if -items % num_devices(axes) <= items / 4:
            return axes
    return ()
