"""Predict the time of a train step: its matrix products and its passes over memory, at a device's rates.

A product takes the time of its arithmetic or of reading its operands, whichever is longer (the roofline of Williams et
al. 2009). Every other operation takes the time to write its result, unless the compiler fuses it with its neighbours.
Three factors, fitted to measurements where there are any, cover the rest.
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
    """Time of a compiled step relative to its device's rates."""

    products: float
    """time of the products over the time at the rates"""
    touched: float
    """passes over memory per result of another operation: below 1 where most are fused with another"""
    operation: float
    """seconds of overhead of every operation"""
    source: str


FACTORS = {
    "cpu": Factors(
        1.28, 2.59, 0.0, "fitted to 16 configurations on two cores (docs/explanation/planning.md)"
    ),
    "gpu": Factors(
        2.0, 0.6, 1e-6, "assumed, because no GPU has been measured: expect a factor of 2 either way"
    ),
}


class Speed(NamedTuple):
    """Prediction for one step."""

    seconds: float
    tokens_per_second: float
    products: float
    """seconds in matrix products"""
    passes: float
    """seconds in everything else"""
    floor: float
    """seconds of the products alone at the device's full rate"""


def predict(job: Job, device: Device, factors: Factors | None = None) -> Speed:
    """Predict a step of `job`, whose choices are made for `device`."""
    factors = factors or FACTORS["gpu" if device.accelerator.platform == "gpu" else "cpu"]
    # A loop over layers has the same products, and is traced faster.
    loop = job.compute.scan_layers or job.model.num_layers > DEEP
    counts = counted(replace(job, compute=replace(job.compute, scan_layers=loop)))
    rate = device.flops[job.resolved_compute().precision]
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
    """Return the operations in matrix products of a step, forward and backward, per token.

    They are counted in the program for an own model, and with frozen parameters, which have no gradient.
    """
    if not trains_subset(job.train) and "model" not in job.code.functions:
        return train_flops(job.model, job.context)
    plain = replace(job.compute, attention="plain", cross_entropy="plain", remat="none", scan_layers=False)
    step = counted(replace(job, optimizer=OptimizerConfig(kind="sgd"), compute=plain))
    return step.flops // (job.batch_size * job.context)


@lru_cache(maxsize=64)
def counted(job: Job) -> Counts:
    """Return the operations of a whole step."""
    return count(job.step(), job.state(), job.batch())
