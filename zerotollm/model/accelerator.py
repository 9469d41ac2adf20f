"""The device of this process, and compiler options for it."""

import jax

from zerotollm.model.compute_config import Accelerator

FEW_ROWS: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Compiler options for programs that multiply a few rows with a matrix, again and again. Otherwise jax's CPU library
for matrix products reorders the matrix first, which then costs more than the product."""


def this_accelerator() -> Accelerator:
    """Return the properties of the first device, for `zerotollm.model.compute_config.resolve`."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    return Accelerator(device.platform, float(capability or 0.0), device.device_kind)


def options_to_run_once() -> dict[str, int] | None:
    """Return XLA's options for a program that runs once, on a CPU without optimization.

    It compiles in half the time and gives the same numbers.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
