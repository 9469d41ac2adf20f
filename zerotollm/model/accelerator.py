"""The device that this process computes on."""

from typing import Any

import jax

from zerotollm.model.compute_config import Accelerator

FEW_ROWS = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""A compiler option for programs that multiply a few rows with a matrix, again and again. The library that jax takes
for products on a CPU moves the matrix into an order of its own first, which then costs more than the product."""


def this_accelerator() -> Accelerator:
    """What `zerotollm.model.compute_config.resolve` must know of the first device."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    return Accelerator(device.platform, float(capability or 0.0), device.device_kind)


def options_to_run_once() -> dict[str, Any] | None:
    """XLA's options for a program that runs once: on a CPU, without optimization, it takes half the time to compile
    and gives the same numbers."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
