"""Measure the rates and the memory of this machine's device, and find out why it may not be the GPU."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp

from zerotollm.model.accelerator import this_accelerator
from zerotollm.planning.device_table import Device, gpu_trouble

PRODUCT = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
"""Rows and columns of the matrices multiplied, by platform."""
COPIED = {"cpu": 2**28, "gpu": 2**30, "tpu": 2**30}
"""Bytes of the array copied, by platform: much more than any cache holds."""


def measure_this(precision: str, seconds: float = 1.5) -> Device:
    """Return the first device, with the best of many rates of a matrix product in `precision` and of a copy."""
    accelerator = this_accelerator()
    size, rate = PRODUCT[accelerator.platform], product_flops(precision, seconds)
    copied = jnp.ones(COPIED[accelerator.platform] // 4, jnp.float32)
    written = copied.nbytes
    # In place, as training does: the page faults of a new array would take three times as long.
    in_place = jax.jit(lambda x: x + 1, donate_argnums=0)
    bandwidth = 2 * written / _fastest(in_place, copied, seconds)
    source = (
        f"measured: a product of {size} x {size} in {precision}, {written / 2**20:.0f} MiB read and written"
    )
    return Device("this", memory_here(), bandwidth, {precision: rate}, 0.0, accelerator, source)


def product_flops(precision: str, seconds: float = 1.5) -> float:
    """Return the best rate of many products of large matrices on the first device, in FLOP/s."""
    size = PRODUCT[this_accelerator().platform]
    matrix = jnp.ones((size, size), precision)
    product = jax.jit(lambda matrix: jnp.matmul(matrix, matrix, preferred_element_type=jnp.float32))
    return 2 * size**3 / _fastest(lambda _: product(matrix), matrix, seconds)


def _fastest(call: Callable[[jax.Array], jax.Array], value: jax.Array, seconds: float) -> float:
    """Return the shortest time of many calls, each on the result of the one before."""
    value = jax.block_until_ready(call(value))
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        value = jax.block_until_ready(call(value))
        times.append(time.perf_counter() - begun)
    return min(times)


def memory_here() -> float:
    """Return the bytes for arrays on the first device: its allocator's limit, or on a CPU the machine's memory."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit") or host_memory_bytes()


def host_memory_bytes() -> int:
    """Return the memory of this machine, or the limit of its control group."""
    if sys.platform == "win32":
        import psutil

        return psutil.virtual_memory().total
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def trouble_here() -> str | None:
    """Return why jax does not compute on the NVIDIA GPU of this machine; None where it does or there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(\d+)\.[\d.]+, *([\d.]+)", output)
    if not match:
        return None
    return gpu_trouble(int(match[1]), float(match[2]), installed_cuda(), jax.default_backend())


def installed_cuda() -> int | None:
    """Return the major version of CUDA that jax's plug-in is built for."""
    for major in (12, 13):
        try:
            version(f"jax-cuda{major}-plugin")
            return major
        except PackageNotFoundError:
            continue
    return None
