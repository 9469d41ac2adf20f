"""How devices are arranged. No heavy imports: the command line reads this file."""

import re
from typing import NamedTuple

from zerotollm.errors import UsageError


class MeshShape(NamedTuple):
    """Devices along each axis; one device is 1 x 1 x 1."""

    data: int = 1
    """copies of the model, each of which sees a part of the batch"""
    fsdp: int = 1
    """parts that parameters and optimizer state are split in, gathered where they are used (ZeRO, arXiv:1910.02054,
    stage 3); these devices see parts of the batch as well"""
    tensor: int = 1
    """parts of heads, hidden units and vocabulary, each computed by one device (Megatron-LM, arXiv:1909.08053)"""

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.data * self.fsdp * self.tensor

    @property
    def rows(self) -> int:
        """Parts that the rows of a batch are split in."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return " ".join(f"{name}={number}" for name, number in self._asdict().items())


def parse_mesh(text: str, name: str = "train.mesh") -> MeshShape:
    """`data=2 fsdp=4`, with spaces or commas; an axis that is not named is 1. Raises UsageError for anything else."""
    sizes: dict[str, int] = {}
    for part in re.split(r"[\s,]+", text.strip()) if text.strip() else ():
        axis, _, number = part.partition("=")
        if axis not in MeshShape._fields or axis in sizes or not re.fullmatch(r"[1-9][0-9]{0,5}", number):
            raise UsageError(
                f"{name} is {text!r}, and must be some of data=N, fsdp=N and tensor=N, each once and from 1 on: "
                f"{part!r} is not, as in --{name} data=2 fsdp=4"
            )
        sizes[axis] = int(number)
    return MeshShape(**sizes)


class Place(NamedTuple):
    """Which of several processes this is."""

    coordinator: str
    """HOST:PORT of the first; empty: to be found by jax, with all else, from Slurm, MPI or a TPU's metadata"""
    process: int = 0
    """from 0 on"""
    of: int = 0
    """processes in all"""


def parse_distributed(text: str) -> Place:
    """`auto`, or `coordinator=HOST:PORT process=0 of=4`. Raises UsageError for anything else."""
    if text == "auto":
        return Place("")
    given = dict(part.partition("=")[::2] for part in re.split(r"[\s,]+", text.strip()))
    address = re.fullmatch(r"[^\s:]+:[0-9]{1,5}", given.get("coordinator", ""))
    numbers = [re.fullmatch(r"[0-9]{1,6}", given.get(name, "")) for name in ("process", "of")]
    if given.keys() != {"coordinator", "process", "of"} or not address or not all(numbers):
        raise UsageError(
            f"--distributed is {text!r}, and must be auto, or all of coordinator=HOST:PORT process=N of=N"
        )
    place = Place(given["coordinator"], int(given["process"]), int(given["of"]))
    if place.process >= place.of:
        raise UsageError(
            f"--distributed has process={place.process} of={place.of}: processes are numbered from 0 to {place.of - 1}"
        )
    return place
