"""Which part of every array a device holds: rules on the paths of parameters, and batches over a mesh.

A rule's specification names, for each axis of an array, the axes of the mesh that it is split over. Optimizer state
lies where its parameter lies, for it has the same path and shape.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zerotollm.errors import UsageError
from zerotollm.sharding.config import MeshShape
from zerotollm.sharding.constraints import AXES, ROWS

Spec = tuple[str | None, ...]

RULES: tuple[tuple[str, Spec], ...] = (
    # What reads the residual stream: hidden units and heads over tensor, the width over fsdp.
    (r"(query|key|value|gate|up|head)", ("fsdp", "tensor")),
    # What writes to it.
    (r"(output|down)", ("tensor", "fsdp")),
    (r"embedding", ("tensor", "fsdp")),
    (r"positions", (None, "fsdp")),
    (r"(query|key|value|gate|up|head)_bias", ("tensor",)),
)
"""(pattern that the last name of a path matches whole, specification). The first that has as many axes as the array
decides; what none matches, norms and other small vectors, every device has whole."""

# What decides the length of an axis, to be named where a mesh does not divide it.
DECIDES = {
    "width": "model.width",
    "query": "model.num_heads x model.key_width",
    "key": "model.num_kv_heads x model.key_width",
    "value": "model.num_kv_heads x model.head_width",
    "output": "model.num_heads x model.head_width",
    "gate": "model.ff_width",
    "up": "model.ff_width",
    "down": "model.ff_width",
    "head": "model.vocab_size",
    "embedding": "model.vocab_size",
}


def path_name(path: Any) -> str:
    """`params/layer_0/attention/query` of a path of `jax.tree_util`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def spec_of(path: str, rank: int) -> Spec:
    """How an array of so many axes lies at that path."""
    name = path.rpartition("/")[2]
    for pattern, spec in RULES:
        if len(spec) == rank and re.fullmatch(pattern, name):
            return spec
    return ()


def parts(spec: Spec, shape: MeshShape) -> int:
    """In how many different parts an array that lies so is split."""
    return math.prod(getattr(shape, axis) for axis in spec if axis)


def check_divides(tree: Any, shape: MeshShape, *, heads: tuple[int, int]) -> None:
    """Raises UsageError where the mesh does not divide an array of parameters, or query and key `heads`."""
    for name, number in zip(("model.num_heads", "model.num_kv_heads"), heads, strict=True):
        if number % shape.tensor:
            raise UsageError(
                f"tensor={shape.tensor} of train.mesh does not divide {name} {number}: take another mesh or model"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        for size, axis in zip(leaf.shape, spec_of(name, len(leaf.shape)), strict=False):
            number = getattr(shape, axis) if axis else 1
            if size % number:
                last = name.rpartition("/")[2].removesuffix("_bias")
                field = DECIDES["width"] if axis == "fsdp" else DECIDES[last]
                raise UsageError(
                    f"{axis}={number} of train.mesh does not divide {field} {size}, an axis of {name}: take another "
                    "mesh or model"
                )


def make_mesh(shape: MeshShape, devices: Any = None) -> Mesh:
    """The mesh over all devices of all processes, or these. Raises UsageError where they are more or fewer."""
    devices = jax.devices() if devices is None else devices
    if shape.size != len(devices):
        kind = devices[0].platform
        raise UsageError(
            f"train.mesh {shape} is made of {shape.size} devices, and here {'is' if len(devices) == 1 else 'are'} "
            f"{len(devices)} ({kind}): choose axes whose product is {len(devices)}"
            + ("" if len(devices) == 1 else ", or hide devices with CUDA_VISIBLE_DEVICES" * (kind == "gpu"))
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def shape_of(mesh: Mesh) -> MeshShape:
    """Its devices along each axis."""
    return MeshShape(**mesh.shape)


def shardings(tree: Any, mesh: Mesh, num_vmapped_seeds: int = 0) -> Any:
    """Where every array of a tree of parameters or of training state lies: the tree with a sharding for each leaf.
    With `num_vmapped_seeds`, each has a first axis more, of as many such trees, which is not split."""
    lead = (None,) if num_vmapped_seeds else ()

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(
            mesh, PartitionSpec(*lead, *spec_of(path_name(path), len(leaf.shape) - len(lead)))
        )

    return jax.tree_util.tree_map_with_path(place, tree)


def placed_shapes(tree: Any, mesh: Mesh, num_vmapped_seeds: int = 0) -> Any:
    """Shapes and types of a tree, each with its sharding: what a program is compiled for, and restored to."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings(tree, mesh, num_vmapped_seeds),
    )


def place_tree(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree, which every process has whole, as the rules say."""

    def place(leaf: Any, where: NamedSharding) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])

    return jax.tree.map(place, tree, shardings(tree, mesh))


def bytes_per_device(tree: Any, shape: MeshShape) -> int:
    """Of arrays that lie as the rules say."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize // parts(spec_of(path_name(path), len(leaf.shape)), shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )


def sharding_rows(params: Any, shape: MeshShape) -> list[tuple[str, str, str, int]]:
    """A table of parameters: (path with `*` for the layer, shape, what each axis is split over, bytes on a device).

    Layers of one shape are one row, with the bytes of all.
    """
    rows: dict[tuple[str, str, str], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name, spec = path_name(path), spec_of(path_name(path), len(leaf.shape))
        split = " x ".join(axis if axis and getattr(shape, axis) > 1 else "-" for axis in spec) or "whole"
        size = " x ".join(map(str, leaf.shape))
        key = re.sub(r"layer_\d+", "layer_*", name), size, split if set(split) - set("- x") else "whole"
        share = math.prod(leaf.shape) * leaf.dtype.itemsize // parts(spec, shape)
        rows[key] = rows.get(key, 0) + share
    return [(*key, share) for key, share in rows.items()]


@dataclass(frozen=True)
class Placement:
    """Batches over a mesh: rows are split over its axes data and fsdp."""

    mesh: Mesh
    micro_batches: int = 1

    @property
    def shape(self) -> MeshShape:
        return shape_of(self.mesh)

    @cached_property
    def _by_row(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    @cached_property
    def _by_lane_and_row(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(None, ROWS))

    @cached_property
    def part(self) -> tuple[int, int]:
        """(index, count): this process has the rows of part `index` when a batch is cut in `count` equal parts.

        Processes that share a tensor axis have the same part. Raises UsageError where its devices' rows do not lie
        side by side.
        """
        count = self.shape.rows
        here = self._by_row.addressable_devices_indices_map((count,)).values()
        mine = sorted({index[0].indices(count)[0] for index in here})
        if mine != list(range(mine[0], mine[0] + len(mine))) or mine[0] % len(mine) or count % len(mine):
            raise UsageError(
                f"train.mesh {self.shape} gives process {jax.process_index()} rows {mine} of {count}, which are no "
                "equal part: let data times fsdp be a multiple of the number of processes, or divide it"
            )
        return mine[0] // len(mine), count // len(mine)

    def rows(self, rows: int) -> int:
        """Rows of a batch with rows of padding, so that every device has as many of each micro-batch."""
        multiple = self.shape.rows * self.micro_batches
        return -(-rows // multiple) * multiple

    def shapes(self, about: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """What a program is compiled for, from name -> ((rows, width), type)."""
        return {
            name: jax.ShapeDtypeStruct((self.rows(size[0]), *size[1:]), kind, sharding=self._by_row)
            for name, (size, kind) in about.items()
        }

    def stacked_shapes(
        self, about: dict[str, Any], num_vmapped_seeds: int
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Likewise, for `place_stacked`."""
        return {
            name: jax.ShapeDtypeStruct(
                (num_vmapped_seeds, self.rows(size[0]), *size[1:]), kind, sharding=self._by_lane_and_row
            )
            for name, (size, kind) in about.items()
        }

    def place_part(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the devices, of which each process gives its `part`."""
        _, count = self.part
        return {name: self._place(x, self.rows(len(x) * count), count) for name, x in batch.items()}

    def place_stacked(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Batches of several seeds, stacked on a new first axis: rows are split, seeds are not."""
        padded = {
            name: np.pad(x, ((0, 0), (0, self.rows(x.shape[1]) - x.shape[1]), (0, 0)))
            for name, x in batch.items()
        }
        return jax.device_put(padded, self._by_lane_and_row)

    def place_whole(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the devices, which every process has made whole."""
        index, count = self.part
        placed = {}
        for name, x in batch.items():
            rows = self.rows(len(x))
            share = rows // count
            placed[name] = self._place(x[index * share : (index + 1) * share], rows, count)
        return placed

    def _place(self, local: np.ndarray, rows: int, count: int) -> jax.Array:
        missing = rows // count - len(local)
        if missing:  # rows of padding have weight 0
            local = np.pad(local, ((0, missing), (0, 0)))
        return jax.make_array_from_process_local_data(self._by_row, local, (rows, *local.shape[1:]))
