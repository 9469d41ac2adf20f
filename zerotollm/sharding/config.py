"""Meshes and processes as text on the command line. No heavy imports: the command line reads this file."""

import re
from typing import NamedTuple

from zerotollm.errors import UsageError


class MeshShape(NamedTuple):
    """Number of devices along each axis. One device is 1 x 1 x 1."""

    data: int = 1
    """replicas of the model, each for a part of the batch"""
    fsdp: int = 1
    """parts of the batch, and shards of parameters and optimizer state, which are gathered for each use (ZeRO stage 3,
    arXiv:1910.02054)"""
    tensor: int = 1
    """parts of heads, hidden units and vocabulary, each computed by one device (Megatron-LM, arXiv:1909.08053)"""

    @property
    def size(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def rows(self) -> int:
        """Number of parts of a batch's rows."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return " ".join(f"{name}={number}" for name, number in self._asdict().items())


def parse_mesh(text: str, name: str = "train.mesh") -> MeshShape:
    """Return the shape of `data=2 fsdp=4`, with spaces or commas; absent axes are 1. Raises UsageError otherwise."""
    sizes: dict[str, int] = {}
    for word in re.split(r"[\s,]+", text.strip()) if text.strip() else ():
        axis, _, number = word.partition("=")
        if axis not in MeshShape._fields or axis in sizes or not re.fullmatch(r"[1-9][0-9]{0,5}", number):
            raise UsageError(
                f"{name} is {text!r}, and must be some of data=N, fsdp=N and tensor=N, each once and at least 1: "
                f"{word!r} is not, as in --{name} data=2 fsdp=4"
            )
        sizes[axis] = int(number)
    return MeshShape(**sizes)


class ProcessAddress(NamedTuple):
    """Which of several processes this is, and where they meet."""

    coordinator: str
    """HOST:PORT of process 0; empty: jax finds all three from Slurm, MPI or a TPU's metadata"""
    process: int = 0
    num_processes: int = 0


def parse_distributed(text: str) -> ProcessAddress:
    """Return the address that `auto` or `coordinator=HOST:PORT process=0 of=4` means. Raises UsageError otherwise."""
    if text == "auto":
        return ProcessAddress("")
    forms = {"coordinator": r"[^\s:]+:[0-9]{1,5}", "process": r"[0-9]{1,6}", "of": r"[0-9]{1,6}"}
    words = (word.partition("=") for word in re.split(r"[\s,]+", text.strip()))
    values = {name: value for name, _, value in words}
    if values.keys() != forms.keys() or not all(re.fullmatch(forms[name], x) for name, x in values.items()):
        raise UsageError(
            f"--distributed is {text!r}, and must be auto, or all of coordinator=HOST:PORT process=N of=N"
        )
    process, of = int(values["process"]), int(values["of"])
    if process >= of:
        raise UsageError(f"--distributed has process={process} of={of}: number processes from 0 to {of - 1}")
    return ProcessAddress(values["coordinator"], process, of)
