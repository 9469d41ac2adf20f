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
