"""What devices can do, from their makers' papers, and the trouble that keeps jax from one. No heavy imports."""

import re
from dataclasses import dataclass, field

from zerotollm.errors import UsageError
from zerotollm.model.compute_config import Accelerator
from zerotollm.suggest import did_you_mean


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates are dense, without sparsity, products in 16 bits summed in float32."""

    name: str
    memory_bytes: float
    bandwidth: float
    """bytes per second, to and from its memory"""
    flops: dict[str, float] = field(hash=False)
    """FLOP/s of matrix products, by type of their factors; float32 includes TF32, which jax uses where it is"""
    watts: float
    """of the whole card under load; 0: not known"""
    accelerator: Accelerator
    source: str
    reserved_bytes: float = 0.0
    """taken by the driver, CUDA and its libraries before the first array"""
    node: int = 8
    """devices that are close to each other"""
    link: float = 25e9
    """bytes per second that a device sends to others of its node; without NVLink over PCIe 4.0 x16, of 32e9 about so
    much"""
    network: float = 12.5e9
    """bytes per second that a device sends to other nodes; where its maker says nothing, 100 Gb/s Ethernet"""


def _gpu(name, title, capability, gigabytes, bandwidth, half, single, watts, source, **links):
    rates = {"float32": single * 1e12, "float16": half * 1e12}
    rates["bfloat16"] = rates["float16"] if capability >= 8.0 else rates["float32"]
    accelerator = Accelerator("gpu", capability, title)
    # Room for the context, cuBLAS and whatever the screen takes: an estimate, not measured here.
    return Device(
        name,
        gigabytes * 2**30,
        bandwidth * 1e9,
        rates,
        watts,
        accelerator,
        source,
        reserved_bytes=0.5 * 2**30,
        **links,
    )


# NVLink in one direction, and an InfiniBand adapter a GPU, as in DGX A100 (HDR) and DGX H100, H200 (NDR): data sheets.
_DGX_A100 = {"link": 300e9, "network": 25e9}
_DGX_H100 = {"link": 450e9, "network": 50e9}
_H100, _H200 = (f"NVIDIA {name} data sheet, without sparsity" for name in ("H100", "H200"))
_TURING = "NVIDIA Turing architecture whitepaper, appendix A and B, reference clocks"
_GA102 = "NVIDIA Ampere GA102 whitepaper, appendix A"
_ADA = "NVIDIA Ada architecture whitepaper, appendix A"
_BLACKWELL = "NVIDIA RTX Blackwell architecture whitepaper, appendix A"

TABLE = {
    device.name: device
    for device in (
        #    name         title                   sm    GB   GB/s  half   single  W
        _gpu("rtx2080", "GeForce RTX 2080", 7.5, 8, 448, 40.3, 10.1, 215, _TURING),
        _gpu("rtx2080ti", "GeForce RTX 2080 Ti", 7.5, 11, 616, 53.8, 13.4, 250, _TURING),
        _gpu("rtx3060", "GeForce RTX 3060", 8.6, 12, 360, 25.5, 12.7, 170, _GA102 + ", scaled to 28 SM"),
        _gpu("rtx3090", "GeForce RTX 3090", 8.6, 24, 936, 71.0, 35.6, 350, _GA102),
        _gpu("rtx4090", "GeForce RTX 4090", 8.9, 24, 1008, 165.2, 82.6, 450, _ADA),
        _gpu("rtx5090", "GeForce RTX 5090", 12.0, 32, 1792, 209.5, 104.8, 575, _BLACKWELL),
        _gpu("t4", "Tesla T4", 7.5, 16, 320, 65.0, 8.1, 70, "NVIDIA T4 data sheet"),
        _gpu("v100", "Tesla V100 SXM2", 7.0, 16, 900, 125.0, 15.7, 300, "NVIDIA V100 data sheet"),
        _gpu(
            "a100", "A100 SXM 80 GB", 8.0, 80, 2039, 312.0, 156.0, 400, "NVIDIA A100 data sheet", **_DGX_A100
        ),
        _gpu(
            "h100",
            "H100 SXM",
            9.0,
            80,
            3350,
            989.4,
            494.7,
            700,
            "NVIDIA H100 data sheet, without sparsity",
            **_DGX_H100,
        ),
        _gpu(
            "h200",
            "H200 SXM",
            9.0,
            141,
            4800,
            989.4,
            494.7,
            700,
            "NVIDIA H200 data sheet, without sparsity",
            **_DGX_H100,
        ),
        Device(
            "apple-m2",
            16 * 2**30,
            100e9,
            {"float32": 3.6e12, "bfloat16": 3.6e12, "float16": 3.6e12},
            0.0,
            Accelerator("cpu", 0.0, "Apple M2, its GPU"),
            "Apple's press release of June 2022; jax computes on the CPU there, which --device this measures",
        ),
        Device(
            "cpu",
            8 * 2**30,
            12e9,
            {"float32": 0.2e12, "bfloat16": 0.2e12, "float16": 0.2e12},
            0.0,
            Accelerator("cpu", 0.0, "two cores of a server CPU with AVX-512"),
            "of the size that --device this gave on two cores of an Intel Xeon: measure yours",
        ),
    )
}


def find(name: str) -> Device:
    """The device of that name, as the table or its maker writes it, with or without its series: `RTX 2080`, `2080`.
    Raises UsageError for another name."""
    plain = _plain(name)
    for device in TABLE.values():
        spelled = {_plain(device.name), _plain(device.accelerator.kind)}
        if plain in spelled | {re.sub("^(rtx|apple)", "", one) for one in spelled}:
            return device
    near = did_you_mean(plain, TABLE)
    raise UsageError(
        f"unknown device {name!r}: this, which measures the one here, or one of {', '.join(TABLE)}{near}"
    )


def _plain(name: str) -> str:
    """In small letters and digits alone, without the maker's and the family's names."""
    return re.sub("^(nvidia|geforce|tesla)+", "", re.sub("[^a-z0-9]", "", name.lower()))


CUDA_DRIVERS = {12: 525, 13: 580}
"""Oldest driver for the wheels of each CUDA version (NVIDIA, CUDA release notes, table of drivers)."""
CUDA_CAPABILITY = {12: 5.0, 13: 7.5}
"""Oldest compute capability that they have code for."""


def gpu_trouble(driver: int | None, capability: float | None, cuda: int | None, platform: str) -> str | None:
    """Why jax does not compute on the NVIDIA GPU that is here, in one line, or None where all is well.

    `driver`: its major version, None where there is none; `cuda`: of the installed wheels, None without any;
    `platform`: where jax computes.
    """
    if driver is None or platform == "gpu":
        return None
    card = "an NVIDIA GPU is here, and jax computes on the CPU"
    if cuda is None:
        return f"{card}: install the wheels for it with `pip install -r requirements-cuda.txt`"
    if driver < CUDA_DRIVERS.get(cuda, 0):
        return (
            f"{card}: driver {driver} is too old for the CUDA {cuda} wheels, which ask for "
            f"{CUDA_DRIVERS[cuda]}: update the driver"
            + (
                ", or install the CUDA 12 wheels (requirements-cuda.txt)"
                if cuda > 12 and driver >= 525
                else ""
            )
        )
    if capability and capability < CUDA_CAPABILITY.get(cuda, 0):
        return (
            f"{card}: the CUDA {cuda} wheels have no code for compute capability {capability}: "
            "`pip install -r requirements-cuda.txt` brings those of CUDA 12"
        )
    return f"{card}: see what `python -c 'import jax; jax.devices(\"cuda\")'` says"
