"""The device that this process computes on."""

import jax

from zerotollm.compute.config import Accelerator


def this_accelerator() -> Accelerator:
    """What `zerotollm.compute.config.resolve` must know of the first device."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    return Accelerator(device.platform, float(capability or 0.0), device.device_kind)
