"""What a plan holds: memory, speed and sizes of a train step on a device, as values and as a table."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import NotRequired, TypedDict

import jax
from rich.table import Table

from zerotollm.model.config import TransformerConfig
from zerotollm.planning.device_table import Device
from zerotollm.planning.fit_memory import TOKENS_PER_PARAMETER, Fields, compute_optimal, largest, size_fields
from zerotollm.planning.flops import num_parameters
from zerotollm.planning.memory import CPU_SCRATCH, Job, compile_step, memory_by_kind, process_peak, xla_memory
from zerotollm.planning.sharded_step import MeshPlan
from zerotollm.planning.speed import FACTORS, flops_per_token, predict
from zerotollm.sharding.config import MeshShape
from zerotollm.training.lora import flatten_params

HOST_BYTES = 0.5e9
"""What Python, jax and XLA hold on a CPU besides arrays, about."""


class ModelSize(TypedDict):
    """A model of another size."""

    parameters: int
    width: int
    layers: int
    heads: int
    tokens: int
    """20 per parameter"""


class Plan(TypedDict):
    """Bytes, seconds and floating-point operations of a train step."""

    parameters: dict[str, int]
    """by group"""
    trained_parameters: int
    flops_per_token: int
    compute: dict[str, str | bool]
    """precision, attention, cross-entropy, remat and scan_layers, resolved"""
    memory: dict[str, int]
    """bytes by kind, as traced"""
    xla_memory: dict[str, int]
    """bytes by XLA's account; empty where it was not asked"""
    needed: int
    """bytes: by XLA where it was asked, else the sum of `memory`"""
    room: float
    """bytes"""
    fits: NotRequired[bool]
    seconds_per_step: float
    floor_seconds: float
    """what its matrix products would take at the device's full rate"""
    tokens_per_second: float
    utilization: float
    tokens: int
    """of the whole training"""
    corpus_tokens: NotRequired[int]
    """to train on, if the corpus is prepared"""
    epochs: NotRequired[float]
    hours: float
    kilowatt_hours: float | None
    largest: NotRequired[ModelSize]
    """the largest model of this shape that fits"""
    compute_optimal: ModelSize
    """the model of this shape to train for about the hours asked for"""
    compute_optimal_hours: float
    """predicted for it"""
    compute_optimal_fields: Fields
    """dotted fields and values that plan it"""
    change: NotRequired[Fields]
    """dotted fields and values: the cheapest change that makes it fit"""
    change_seconds_per_step: NotRequired[float]


def room_of(device: Device, memory_gb: float) -> float:
    """Return the bytes that a training may take of the device; `memory_gb` 0: all of it."""
    return (memory_gb * 1e9 or device.memory_bytes) - (device.reserved_bytes or HOST_BYTES)


def plan_step(
    job: Job,
    device: Device,
    room: float,
    *,
    steps: int,
    hours: float,
    compiled: bool,
    given: TransformerConfig,
    job_of: Callable[[TransformerConfig], Job],
) -> Plan:
    """Return the plan of `steps` such steps; `compiled`: XLA compiles the step here, from shapes alone.

    `hours` is the time for which the compute-optimal model is sought, `given` the experiment's model before it was
    resolved, and `job_of` returns its step with another resolved model.
    """
    memory, speed = memory_by_kind(job), predict(job, device)
    xla = xla_memory(compile_step(job)) if compiled else {}
    needed = process_peak(xla, device.accelerator.platform) if xla else sum(memory.values())
    tokens, flops = steps * job.batch_size * job.context, flops_per_token(job)
    duration = tokens / speed.tokens_per_second / 3600
    optimal, optimal_hours = compute_optimal(job, device, hours, job_of)
    optimal_size = _model_size(optimal)
    optimal_steps = math.ceil(optimal_size["tokens"] / (job.batch_size * job.context))
    plan: Plan = {
        "parameters": parameters_by_group(job),
        "trained_parameters": trained_parameters(job),
        "flops_per_token": flops,
        "compute": asdict(job.compute),
        "memory": memory,
        "xla_memory": xla,
        "needed": needed,
        "room": room,
        "seconds_per_step": speed.seconds,
        "floor_seconds": speed.floor,
        "tokens_per_second": speed.tokens_per_second,
        "utilization": flops * speed.tokens_per_second / device.flops[job.compute.precision],
        "tokens": tokens,
        "hours": duration,
        "kilowatt_hours": duration * device.watts / 1000 or None,
        "compute_optimal": optimal_size,
        "compute_optimal_hours": optimal_hours,
        "compute_optimal_fields": size_fields(given, optimal, optimal_steps),
    }
    if model := largest(job, room):
        plan["largest"] = _model_size(model)
    return plan


def _model_size(model: TransformerConfig) -> ModelSize:
    size = num_parameters(model)
    return {
        "parameters": size,
        "width": model.width,
        "layers": model.num_layers,
        "heads": model.num_heads,
        "tokens": TOKENS_PER_PARAMETER * size,
    }


def parameters_by_group(job: Job) -> dict[str, int]:
    """Return the parameters of the model, without adapters, by what they are for."""
    groups: Counter[str] = Counter()
    for path, leaf in flatten_params(job.parameters()):
        names = path.split("/")
        side = f"{names.pop(0)} " if names[0] in ("encoder", "decoder") else ""
        if any("norm" in name for name in names):
            group = "norms"
        else:
            group = side + (names[1] if names[0].startswith("layer_") else names[0])
        groups[group] += math.prod(leaf.shape)
    return dict(groups)


def trained_parameters(job: Job) -> int:
    """Return the parameters that the optimizer changes: all, some, or adapters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(job.state().params))


def plan_table(plan: Plan, job: Job, device: Device, hours: float) -> Table:
    """Return the plan as a table; `hours` as in `plan_step`."""
    compute, memory, xla = plan["compute"], plan["memory"], plan["xla_memory"]
    pairs = job.model.encoder_layers > 0
    precision = job.compute.precision
    platform = "gpu" if device.accelerator.platform == "gpu" else "cpu"
    table = Table(show_header=False, box=None, pad_edge=False)
    row = table.add_row
    row("device", f"{device.accelerator.kind or device.name}: {device.source}")
    row(
        "",
        f"{_size(device.memory_bytes)}, {device.bandwidth / 1e9:,.0f} GB/s, "
        f"{device.flops[precision] / 1e12:,.2f} TFLOP/s in {precision}",
    )
    size, trained = sum(plan["parameters"].values()), plan["trained_parameters"]
    row("parameters", f"{size:,}" + (f", {trained:,} trained" if trained != size else ""))
    for group, number in plan["parameters"].items():
        row(f"  {group.replace('_', ' ')}", f"{number:,}")
    row(
        "batch",
        f"{job.batch_size} {'pairs' if pairs else 'windows'} of {job.context} tokens{' a side' * pairs}, "
        f"{job.micro_batch} at once",
    )
    row(
        "computed in",
        f"{precision}, attention {compute['attention']}, cross-entropy {compute['cross_entropy']}, "
        f"remat {compute['remat']}",
    )
    row("FLOPs per token", f"{plan['flops_per_token'] / 1e9:,.3f} G, forward and backward")
    row("memory by kind", _size(sum(memory.values())))
    for kind, number in memory.items():
        row(f"  {kind}", _size(number))
    if xla:
        scratch = f", {CPU_SCRATCH - 1:.0%} for its matrix library" if platform == "cpu" else ""
        here = jax.devices()[0].platform
        row("memory by XLA", f"{_size(plan['needed'])}, the step compiled here, for {here}{scratch}")
        for kind, number in xla.items():
            row(f"  {kind}", _size(number))
    row("fits", f"{_verdict(plan['room'] - plan['needed'])}, of {_size(plan['room'])}")
    row(
        "speed",
        f"about {plan['tokens_per_second']:,.0f} tokens/s, {plan['seconds_per_step'] * 1e3:,.0f} ms a step "
        f"({plan['floor_seconds'] * 1e3:,.0f} at the full rate), {plan['utilization']:.0%} utilization; "
        f"factors {FACTORS[platform].source}",
    )
    energy = f", {plan['kilowatt_hours']:,.2f} kWh" if plan["kilowatt_hours"] else ""
    row("the experiment", f"{plan['tokens']:,} tokens: {_time(plan['hours'])}{energy}")
    if "corpus_tokens" in plan and "epochs" in plan:
        row(
            "the corpus",
            f"{plan['corpus_tokens']:,} tokens to train on, as last prepared: {plan['epochs']:.2g} epochs",
        )
    one = "one pair" if pairs else "one window"
    if "largest" in plan:
        row("largest", f"{_model(plan['largest'])} fits, {one} at a time and every block rematerialized")
    model = plan["compute_optimal"]
    row(
        f"for {hours:g} hours",
        f"compute-optimal: {_model(model)} on {model['tokens'] / 1e6:,.0f} M tokens, {TOKENS_PER_PARAMETER} per "
        f"parameter: {_time(plan['compute_optimal_hours'])}",
    )
    return table


def mesh_table(planned: MeshPlan, job: Job, shape: MeshShape, device: Device, room: float) -> Table:
    """Return what one device of a mesh holds and sends, as a table."""
    tokens, needed = job.batch_size * job.context, sum(planned.memory.values())
    best, worst = planned.seconds
    table = Table(show_header=False, box=None, pad_edge=False)
    row = table.add_row
    row(
        "devices",
        f"{shape.size} x {device.accelerator.kind or device.name}, nodes of {device.node}: {device.source}",
    )
    row(
        "",
        f"{device.link / 1e9:,.0f} GB/s in a node, {device.network / 1e9:,.1f} GB/s a device between nodes",
    )
    row("parameters", f"{num_parameters(job.model):,}")
    row(
        "batch",
        f"{job.batch_size:,} windows of {job.context:,} tokens, {job.batch_size // shape.rows} a device",
    )
    row("memory of a device", _size(needed))
    for kind, number in planned.memory.items():
        row(f"  {kind}", _size(number))
    if planned.xla_bytes:
        row("memory by XLA", f"{_size(planned.xla_bytes)}, compiled for CPUs, without a loop over layers")
    row("fits", _verdict(room - needed))
    if shape.size > 1 and not planned.operations:  # the compiled step says what is sent
        row("sent by a device", "not counted with --compile no, and neither is its time")
        row("a step", f"{planned.compute_seconds * 1e3:,.0f} ms of computing")
        return table
    row("sent by a device", f"{_size(sum(planned.sent.values()))} a step, {planned.operations:,} operations")
    for kind, number in sorted(planned.sent.items()):
        row(f"  {kind}", _size(number))
    row(
        "a step",
        f"{planned.compute_seconds * 1e3:,.0f} ms of computing, {planned.sending_seconds * 1e3:,.0f} ms of sending: "
        f"{best * 1e3:,.0f} ms if all of it overlaps, {worst * 1e3:,.0f} ms if nothing does",
    )
    row("speed", f"{tokens / worst:,.0f} to {tokens / best:,.0f} tokens/s")
    low, high = planned.efficiency
    row("scaling efficiency", f"{low:.0%} to {high:.0%} of {shape.size} devices that send nothing")
    return table


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _verdict(left: float) -> str:
    return f"yes, {_size(left)} to spare" if left >= 0 else f"no, {_size(-left)} too much"


def _model(size: ModelSize) -> str:
    return f"{size['parameters'] / 1e6:,.1f} M parameters, width {size['width']}, {size['layers']} layers,"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.1f} minutes"
