"""How long a train step takes: its matrix products and its passes over memory, at a device's rates.

A product takes as long as its arithmetic or its operands' way from memory, whichever is longer (the roofline of
Williams et al. 2009); every other operation takes the time to write its result, as far as the compiler does not fuse
it with its neighbours. What is left over is in three factors, fitted to measurements where there are any.
"""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from zerotollm.planning.device_table import Device
from zerotollm.planning.flops import train_flops
from zerotollm.planning.jaxpr_cost import Counts, count
from zerotollm.planning.memory import DEEP, Job
from zerotollm.training.config import OptimizerConfig
from zerotollm.training.lora import trains_subset


class Factors(NamedTuple):
    """How far a compiled step stays behind its device's rates."""

    products: float
    """time of the products over what the rates allow"""
    touched: float
    """ways through memory that the results of other operations take: below 1 where most are fused with another"""
    operation: float
    """seconds that every operation costs besides"""
    source: str


FACTORS = {
    "cpu": Factors(1.28, 2.59, 0.0, "fitted to 16 configurations on two cores (docs/plan.md)"),
    "gpu": Factors(2.0, 0.6, 1e-6, "assumed, for no GPU has been measured: expect a factor of 2 either way"),
}


class Speed(NamedTuple):
    """Of one step, predicted."""

    seconds: float
    tokens_per_second: float
    products: float
    """seconds in matrix products"""
    passes: float
    """seconds in everything else"""
    floor: float
    """seconds that the products alone would take at the device's full rate"""


def predict(job: Job, device: Device, factors: Factors | None = None) -> Speed:
    """Seconds of a step of `job`, whose choices are made for `device`."""
    factors = factors or FACTORS["gpu" if device.accelerator.platform == "gpu" else "cpu"]
    # A loop over layers has the same products.
    loop = job.compute.scan_layers or job.model.num_layers > DEEP
    counts = counted(replace(job, compute=replace(job.compute, scan_layers=loop)))
    rate = device.flops[job.how().precision]
    full = sum(
        times * max(product.flops / rate, product.bytes / device.bandwidth)
        for product, times in counts.products.items()
    )
    products = factors.products * full
    passes = factors.touched * counts.touched / device.bandwidth + factors.operation * counts.operations
    seconds = products + passes
    tokens = job.batch_size * job.context
    return Speed(seconds, tokens / seconds, products, passes, counts.flops / rate)


def flops_per_token(job: Job) -> int:
    """Floating-point operations of the matrix products of a step, forward and backward, per token. Of a part of the
    parameters, or adapters, they are counted in the program: what is frozen has no gradient."""
    if not trains_subset(job.train) and "model" not in job.code.functions:
        return train_flops(job.model, job.context)
    plain = replace(job.compute, attention="plain", cross_entropy="plain", remat="none", scan_layers=False)
    step = counted(replace(job, optimizer=OptimizerConfig(kind="sgd"), compute=plain))
    return step.flops // (job.batch_size * job.context)


@lru_cache(maxsize=64)
def counted(job: Job) -> Counts:
    """The operations of a whole step."""
    return count(job.step(), job.state(), job.batch())
