"""Rates and memory of devices, from their makers' documents; why jax may not find a GPU. No heavy imports."""

import re
from dataclasses import dataclass, field

from zerotollm.errors import UsageError
from zerotollm.model.compute_config import Accelerator
from zerotollm.suggest import did_you_mean


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates are dense, without sparsity; products in 16 bits accumulate in float32."""

    name: str
    memory_bytes: float
    bandwidth: float
    """bytes per second, to and from its memory"""
    flops: dict[str, float] = field(hash=False)
    """FLOP/s of matrix products by type of their factors; float32 includes TF32, which jax uses where there is one"""
    watts: float
    """of the whole card under load; 0: not known"""
    accelerator: Accelerator
    source: str
    reserved_bytes: float = 0.0
    """taken by the driver, CUDA and its libraries before the first array"""
    node: int = 8
    """devices of a node"""
    link: float = 25e9
    """bytes per second that a device sends within its node; without NVLink about 25e9 of PCIe 4.0 x16's 32e9"""
    network: float = 12.5e9
    """bytes per second that a device sends to other nodes; 100 Gb/s Ethernet where the maker names none"""


# (link, network): NVLink in one direction, and an InfiniBand adapter a GPU, as in DGX A100 (HDR) and DGX H100, H200
# (NDR): data sheets.
_PCIE = Device.link, Device.network
_DGX_A100 = 300e9, 25e9
_DGX_H100 = 450e9, 50e9
_TURING = "NVIDIA Turing architecture whitepaper, appendix A and B, reference clocks"
_GA102 = "NVIDIA Ampere GA102 whitepaper, appendix A"
_ADA = "NVIDIA Ada architecture whitepaper, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell architecture whitepaper, appendix A"
_SHEET = "NVIDIA {} data sheet"
_DENSE = "NVIDIA {} data sheet, without sparsity"
_APPLE = "Apple's press release of June 2022; jax computes on the CPU there, which --device this measures"
_XEON = "of the size that --device this gave on two cores of an Intel Xeon: measure yours"

_GPUS = (
    # name       title                   sm    GB   GB/s  TFLOP/s of 16 and 32 bits, W
    ("rtx2080", "GeForce RTX 2080", 7.5, 8, 448, 40.3, 10.1, 215, *_PCIE, _TURING),
    ("rtx2080ti", "GeForce RTX 2080 Ti", 7.5, 11, 616, 53.8, 13.4, 250, *_PCIE, _TURING),
    ("rtx3060", "GeForce RTX 3060", 8.6, 12, 360, 25.5, 12.7, 170, *_PCIE, _GA102 + ", scaled to 28 SM"),
    ("rtx3090", "GeForce RTX 3090", 8.6, 24, 936, 71.0, 35.6, 350, *_PCIE, _GA102),
    ("rtx4090", "GeForce RTX 4090", 8.9, 24, 1008, 165.2, 82.6, 450, *_PCIE, _ADA),
    ("rtx5090", "GeForce RTX 5090", 12.0, 32, 1792, 209.5, 104.8, 575, *_PCIE, _BLACKWELL),
    ("t4", "Tesla T4", 7.5, 16, 320, 65.0, 8.1, 70, *_PCIE, _SHEET.format("T4")),
    ("v100", "Tesla V100 SXM2", 7.0, 16, 900, 125.0, 15.7, 300, *_PCIE, _SHEET.format("V100")),
    ("a100", "A100 SXM 80 GB", 8.0, 80, 2039, 312.0, 156.0, 400, *_DGX_A100, _SHEET.format("A100")),
    ("h100", "H100 SXM", 9.0, 80, 3350, 989.4, 494.7, 700, *_DGX_H100, _DENSE.format("H100")),
    ("h200", "H200 SXM", 9.0, 141, 4800, 989.4, 494.7, 700, *_DGX_H100, _DENSE.format("H200")),
)
_HOSTS = (
    # name        title                                 GB  GB/s TFLOP/s
    ("apple-m2", "Apple M2, its GPU", 16, 100, 3.6, _APPLE),
    ("cpu", "two cores of a server CPU with AVX-512", 8, 12, 0.2, _XEON),
)


def _rates(single: float, half: float, bfloat16: float) -> dict[str, float]:
    return {"float32": single * 1e12, "float16": half * 1e12, "bfloat16": bfloat16 * 1e12}


TABLE = {
    name: Device(
        name,
        gigabytes * 2**30,
        bandwidth * 1e9,
        _rates(single, half, half if capability >= 8.0 else single),
        watts,
        Accelerator("gpu", capability, title),
        source,
        reserved_bytes=0.5 * 2**30,  # the context, cuBLAS and the screen: an estimate, not measured here
        link=link,
        network=network,
    )
    for name, title, capability, gigabytes, bandwidth, half, single, watts, link, network, source in _GPUS
} | {
    name: Device(
        name,
        gb * 2**30,
        bandwidth * 1e9,
        _rates(rate, rate, rate),
        0.0,
        Accelerator("cpu", 0.0, title),
        source,
    )
    for name, title, gb, bandwidth, rate, source in _HOSTS
}


def find(name: str) -> Device:
    """Return a device by the name of the table or of its maker, with or without its series: `RTX 2080`, `2080`.

    Raises UsageError for another name.
    """
    wanted = _short(name)
    for device in TABLE.values():
        names = {_short(device.name), _short(device.accelerator.kind)}
        if wanted in names | {re.sub("^(rtx|apple)", "", known) for known in names}:
            return device
    near = did_you_mean(wanted, TABLE)
    raise UsageError(
        f"unknown device {name!r}: expected this (measure the one here) or one of {', '.join(TABLE)}{near}"
    )


def _short(name: str) -> str:
    """Return the lower-case letters and digits without the maker's and the family's names."""
    return re.sub("^(nvidia|geforce|tesla)+", "", re.sub("[^a-z0-9]", "", name.lower()))


CUDA_DRIVERS = {12: 525, 13: 580}
"""Oldest driver for the wheels of each CUDA version (NVIDIA, CUDA release notes, table of drivers)."""
CUDA_CAPABILITY = {12: 5.0, 13: 7.5}
"""Oldest compute capability that the wheels have code for."""


def gpu_trouble(driver: int | None, capability: float | None, cuda: int | None, platform: str) -> str | None:
    """Return in one line why jax does not compute on the NVIDIA GPU of this machine; None where it does.

    `driver` is its major version, None without one; `cuda` the version of the installed wheels, None without any;
    `platform` where jax computes.
    """
    if driver is None or platform == "gpu":
        return None
    if cuda is None:
        reason = "install the wheels for it with `pip install -r requirements-cuda.txt`"
    elif driver < CUDA_DRIVERS.get(cuda, 0):
        older = ", or install the CUDA 12 wheels (requirements-cuda.txt)"
        reason = (
            f"driver {driver} is too old for the CUDA {cuda} wheels, which need {CUDA_DRIVERS[cuda]}: "
            f"update the driver{older if cuda > 12 and driver >= CUDA_DRIVERS[12] else ''}"
        )
    elif capability and capability < CUDA_CAPABILITY.get(cuda, 0):
        reason = (
            f"the CUDA {cuda} wheels have no code for compute capability {capability}: "
            "`pip install -r requirements-cuda.txt` installs those of CUDA 12"
        )
    else:
        reason = "see the error of `python -c 'import jax; jax.devices(\"cuda\")'`"
    return f"this machine has an NVIDIA GPU, but jax computes on the CPU: {reason}"
