"""Sharding of parameters, optimizer state and batches over a mesh, by rules on the paths of parameters.

A rule's specification names, for each axis of an array, the axis of the mesh that splits it. Optimizer state is sharded
as its parameter, whose path and shape it has.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from zerotollm.errors import UsageError
from zerotollm.sharding.config import MeshShape
from zerotollm.sharding.constraints import AXES, ROWS
from zerotollm.types import PyTree

Spec = tuple[str | None, ...]
T = TypeVar("T")  # a pytree of arrays, or of their shapes

RULES: tuple[tuple[str, Spec], ...] = (
    # Read from the residual stream: hidden units and heads over tensor, the width over fsdp.
    (r"(query|key|value|gate|up|head)", ("fsdp", "tensor")),
    # Write to the residual stream.
    (r"(output|down)", ("tensor", "fsdp")),
    (r"embedding", ("tensor", "fsdp")),
    (r"positions", (None, "fsdp")),
    (r"(query|key|value|gate|up|head)_bias", ("tensor",)),
)
"""(pattern of the last name of a path, specification). The first match with as many axes as the array applies. Arrays
without a match, norms and other small vectors, are replicated."""

# The fields that determine the length of an axis, for messages.
FIELDS = {
    "width": "model.width",
    "query": "model.num_heads x model.key_width",
    "key": "model.num_kv_heads x model.key_width",
    "value": "model.num_kv_heads x model.head_width",
    "output": "model.num_heads x model.head_width",
    **dict.fromkeys(("gate", "up", "down"), "model.ff_width"),
    **dict.fromkeys(("head", "embedding"), "model.vocab_size"),
}


def path_name(path: KeyPath) -> str:
    """Return the names of a path: `params/layer_0/attention/query`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec_of(path: str, rank: int) -> Spec:
    """Return the specification of an array with `rank` axes at that path."""
    name = path.rpartition("/")[2]
    return next((spec for rule, spec in RULES if len(spec) == rank and re.fullmatch(rule, name)), ())


def _arrays(tree: object) -> list[tuple[str, Any, Spec]]:
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return [(name, leaf, spec_of(name, len(leaf.shape))) for name, leaf in leaves]


def check_divides(tree: object, shape: MeshShape, *, heads: tuple[int, int]) -> None:
    """Raise UsageError if the mesh does not divide an array of a tree, or the numbers of query and key `heads`."""
    for name, number in zip(("model.num_heads", "model.num_kv_heads"), heads, strict=True):
        if number % shape.tensor:
            raise UsageError(
                f"tensor={shape.tensor} of train.mesh does not divide {name} {number}: take another mesh or model"
            )
    for name, leaf, spec in _arrays(tree):
        for size, axis in zip(leaf.shape, spec, strict=False):
            number = getattr(shape, axis) if axis else 1
            if size % number:
                last = name.rpartition("/")[2].removesuffix("_bias")
                field = FIELDS["width"] if axis == "fsdp" else FIELDS[last]
                raise UsageError(
                    f"{axis}={number} of train.mesh does not divide {field} {size}, an axis of {name}: take another "
                    "mesh or model"
                )


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of these devices, or of all devices of all processes. Raises UsageError for another number."""
    devices = jax.devices() if devices is None else devices
    count, kind = len(devices), devices[0].platform
    if shape.size != count:
        hide = ", or hide devices with CUDA_VISIBLE_DEVICES" if kind == "gpu" and count > 1 else ""
        raise UsageError(
            f"train.mesh {shape} is made of {shape.size} devices, and here {'is' if count == 1 else 'are'} {count} "
            f"({kind}): choose axes whose product is {count}{hide}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def shardings(tree: PyTree, mesh: Mesh, num_vmapped_seeds: int = 0) -> PyTree:
    """Return the sharding of all arrays of parameters or state, with an unsplit first axis for vmapped seeds."""
    seed_axis = (None,) if num_vmapped_seeds else ()

    def sharding(path: KeyPath, leaf: jax.Array) -> NamedSharding:
        spec = spec_of(path_name(path), len(leaf.shape) - len(seed_axis))
        return NamedSharding(mesh, PartitionSpec(*seed_axis, *spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def placed_shapes(tree: T, mesh: Mesh, num_vmapped_seeds: int = 0) -> T:
    """Return shapes, types and shardings of a tree's arrays, for compilation and restoring."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, num_vmapped_seeds),
    )


def place_tree(tree: T, mesh: Mesh) -> T:
    """Return the tree sharded by the rules. Every process must have all of its arrays."""

    def place(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree, shardings(tree, mesh))


def bytes_per_device(tree: object, shape: MeshShape) -> int:
    return sum(_bytes(leaf, spec, shape) for _, leaf, spec in _arrays(tree))


def _bytes(leaf: jax.Array, spec: Spec, shape: MeshShape) -> int:
    num_shards = math.prod(getattr(shape, axis) for axis in spec if axis)
    return math.prod(leaf.shape) * leaf.dtype.itemsize // num_shards


def sharding_rows(params: object, shape: MeshShape) -> list[tuple[str, str, str, int]]:
    """Return a table of parameters: path with `*` for the layer, shape, mesh axes, bytes of all layers on a device."""
    rows: dict[tuple[str, str, str], int] = {}
    for name, leaf, spec in _arrays(params):
        axes = [axis if axis and getattr(shape, axis) > 1 else "-" for axis in spec]
        split = " x ".join(axes) if set(axes) - {"-"} else "whole"
        key = re.sub(r"layer_\d+", "layer_*", name), " x ".join(map(str, leaf.shape)), split
        rows[key] = rows.get(key, 0) + _bytes(leaf, spec, shape)
    return [(*key, size) for key, size in rows.items()]


Shapes = Mapping[str, tuple[tuple[int, ...], DTypeLike]]
"""Shape, with rows first, and type of every array of a batch."""


@dataclass(frozen=True)
class Placement:
    """Batches on a mesh, whose axes data and fsdp split the rows."""

    mesh: Mesh
    micro_batches: int = 1

    @property
    def shape(self) -> MeshShape:
        return MeshShape(**self.mesh.shape)

    def _sharding(self, *axes: tuple[str, ...] | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @cached_property
    def part(self) -> tuple[int, int]:
        """(index, count): if a batch is cut into `count` equal parts, this process has the rows of part `index`.

        Raises UsageError if the rows of this process's devices are not contiguous.
        """
        count = self.shape.rows
        indices = self._sharding(ROWS).addressable_devices_indices_map((count,)).values()
        rows = sorted({index[0].indices(count)[0] for index in indices if index})
        size = len(rows)
        if rows != list(range(rows[0], rows[0] + size)) or rows[0] % size or count % size:
            raise UsageError(
                f"train.mesh {self.shape} gives process {jax.process_index()} rows {rows} of {count}, which are not an "
                "equal part: let data times fsdp be a multiple of the number of processes, or divide it"
            )
        return rows[0] // size, count // size

    def rows(self, rows: int) -> int:
        """Return the rows of a batch with padding, which gives every device as many rows of each micro-batch."""
        multiple = self.shape.rows * self.micro_batches
        return -(-rows // multiple) * multiple

    def shapes(self, batch: Shapes, num_vmapped_seeds: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shapes and shardings of a batch, or of those of several seeds (`place_stacked`), for compilation."""
        seeds = (num_vmapped_seeds,) if num_vmapped_seeds else ()
        sharding = self._sharding(*((None,) if seeds else ()), ROWS)
        return {
            name: jax.ShapeDtypeStruct((*seeds, self.rows(shape[0]), *shape[1:]), dtype, sharding=sharding)
            for name, (shape, dtype) in batch.items()
        }

    def place_part(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Place a batch of which each process has its `part`."""
        _, count = self.part
        return {name: self._place(x, self.rows(len(x) * count), count) for name, x in batch.items()}

    def place_stacked(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Place the batches of several seeds, stacked on a new first axis, which is not split."""
        padded = {
            name: np.pad(x, ((0, 0), (0, self.rows(x.shape[1]) - x.shape[1]), (0, 0)))
            for name, x in batch.items()
        }
        return jax.device_put(padded, self._sharding(None, ROWS))

    def place_whole(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Place a batch of which every process has all rows."""
        index, count = self.part

        def place(x: np.ndarray) -> jax.Array:
            share = self.rows(len(x)) // count
            return self._place(x[index * share : (index + 1) * share], share * count, count)

        return {name: place(x) for name, x in batch.items()}

    def _place(self, local: np.ndarray, rows: int, count: int) -> jax.Array:
        padding = rows // count - len(local)  # rows of padding have weight 0
        local = np.pad(local, ((0, padding), (0, 0))) if padding else local
        return jax.make_array_from_process_local_data(self._sharding(ROWS), local, (rows, *local.shape[1:]))
