"""What XLA is told before it starts on an NVIDIA GPU. No heavy imports.

Set here, unless the environment says otherwise:
    XLA_CLIENT_MEM_FRACTION=0.9    jax takes 0.75 of a card, which leaves 2 GB of an 8 GB card unused
Left as XLA has it, since nothing else was measured to help: command buffers (FUSION, CUBLAS, ... are recorded as
CUDA graphs), autotuning level 4 (whose results jax keeps in its compilation cache), no latency hiding, which moves
collectives and serves several GPUs. `XLA_FLAGS` reaches XLA untouched.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
SETTINGS = {"XLA_CLIENT_MEM_FRACTION": "0.9"}


def prepare_gpu(environment: MutableMapping[str, str] = os.environ, driver: Path = DRIVER) -> dict[str, str]:
    """Sets what is not set yet where an NVIDIA driver is; returns what it set. To be called before jax starts."""
    if not driver.exists():
        return {}
    older = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # the same under its former name
    chosen = {name: value for name, value in SETTINGS.items() if name not in environment}
    if older in environment:
        chosen.pop("XLA_CLIENT_MEM_FRACTION", None)
    environment.update(chosen)
    return chosen
