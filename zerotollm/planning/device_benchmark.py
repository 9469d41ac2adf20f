"""What the device here can do, measured in a few seconds; and why it may not be the GPU."""

import os
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zerotollm.model.accelerator import this_accelerator
from zerotollm.planning.device_table import Device, gpu_trouble

PRODUCT = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
"""Rows and columns of the matrices multiplied."""
COPIED = {"cpu": 2**28, "gpu": 2**30, "tpu": 2**30}
"""Bytes of the array copied: much more than any cache holds."""


def measure_this(precision: str, seconds: float = 1.5) -> Device:
    """The first device, its rates of a matrix product and of a copy the best of many; `precision` as resolved."""
    import jax
    import jax.numpy as jnp

    accelerator = this_accelerator()
    size = PRODUCT[accelerator.platform]
    matrix = jnp.ones((size, size), precision)
    product = jax.jit(lambda matrix: jnp.matmul(matrix, matrix, preferred_element_type=jnp.float32))
    rate = 2 * size**3 / _fastest(lambda _: product(matrix), matrix, seconds)
    copied = jnp.ones(COPIED[accelerator.platform] // 4, jnp.float32)
    written = copied.nbytes
    # In place: a new array would be faulted in page by page, three times as slow, which training avoids too.
    in_place = jax.jit(lambda x: x + 1, donate_argnums=0)
    bandwidth = 2 * written / _fastest(in_place, copied, seconds)
    watts = 0.0
    return Device(
        "this",
        memory_here(),
        bandwidth,
        {precision: rate},
        watts,
        accelerator,
        f"measured: a product of {size} x {size} in {precision}, {written / 2**20:.0f} MiB read and written",
    )


def _fastest(call: Any, value: Any, seconds: float) -> float:
    """The shortest of many runs, each on what the one before returned."""
    import jax

    value = jax.block_until_ready(call(value))
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        value = jax.block_until_ready(call(value))
        taken.append(time.perf_counter() - begun)
    return min(taken)


def memory_here() -> float:
    """Bytes for arrays on the first device: what its allocator may take, or on a CPU the memory of the machine."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit") or host_memory_bytes()


def host_memory_bytes() -> int:
    """Memory of this machine, or what its control group allows."""
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
    """Why jax does not compute on the NVIDIA GPU of this machine; None where it does or there is none."""
    import jax

    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"(\d+)\.[\d.]+, *([\d.]+)", said)
    if not found:
        return None
    return gpu_trouble(int(found[1]), float(found[2]), installed_cuda(), jax.default_backend())


def installed_cuda() -> int | None:
    """Major version of CUDA that jax's plug-in here is built for."""
    for major in (12, 13):
        try:
            version(f"jax-cuda{major}-plugin")
        except PackageNotFoundError:
            continue
        return major
    return None
