"""plan: does an experiment fit a device, how long will it take, and what would fit better; nothing is allocated."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zerotollm.actions.config import PlanOptions
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.planning.device_table import Device, find
from zerotollm.planning.flops import num_parameters
from zerotollm.session.job import job_for
from zerotollm.sharding.config import parse_mesh
from zerotollm.shell import launch, typed_again, with_value

MOST_HOURS = 10**9
"""100,000 years."""

HOST_BYTES = 0.5e9
"""What Python, jax and XLA hold on a CPU besides arrays, about."""


def plan(experiment: Experiment, run_dir: Path, options: PlanOptions) -> dict[str, Any]:
    """Shows what a run needs on a device and what it brings; returns the same as a dictionary, see `_facts`.

    The model is traced and, where `options.compile` says so, compiled from shapes alone; neither text nor tokenizer are
    read, so that the vocabulary is the one asked for. A corpus of labels is read for their number. Raises UsageError
    for a device that is not known or options out of range, RunError where nothing fits.
    """
    if not 0 < options.hours <= MOST_HOURS or options.memory_gb < 0:
        raise UsageError(
            f"hours is {options.hours} and memory_gb {options.memory_gb}: take above 0 hours, at most {MOST_HOURS:,}, "
            "and at least 0 GB"
        )
    device = None if options.device == "this" else find(options.device)
    # Imported here: nobody should wait for jax to hear that a device is not known.
    from zerotollm.console import Console
    from zerotollm.model.accelerator import this_accelerator
    from zerotollm.planning.device_benchmark import measure_this, trouble_here
    from zerotollm.planning.fit_memory import cheapest_change

    console = Console(highlight=False, soft_wrap=True)
    if device is None:
        trouble = trouble_here()
        if trouble:
            console.print(trouble)
        accelerator = this_accelerator()
        precision = experiment.compute.precision
        device = measure_this(accelerator.half() if precision == "auto" else precision)
    if options.mesh:
        return _plan_on_mesh(experiment, device, options, console)
    room = (options.memory_gb * 1e9 or device.memory_bytes) - (device.reserved_bytes or HOST_BYTES)
    job = job_for(experiment, device.accelerator)
    facts = _facts(experiment, job, device, room, options)
    fits = facts["needed"] <= room
    change = None
    if not fits:
        # What XLA needs beyond the model by kind, it will need after the change too.
        factor = facts["needed"] / sum(facts["memory"].values())
        change = cheapest_change(job, room / factor, device)
        if change and options.fit:
            experiment = _changed(experiment, change.fields)
            facts = _facts(experiment, change.job, device, room, options)
    facts["fits"] = facts["needed"] <= room
    if change:
        facts["change"] = change.fields
        facts["change_seconds_per_step"] = change.seconds
    console.print(_table(experiment, facts, device, room, options))
    if change and options.fit:
        console.print(f"so that it fits: {_command(experiment, change.fields)}")
    elif change:
        slower = change.seconds / facts["seconds_per_step"]
        console.print(
            f"does not fit; with {_options(change.fields)} it would, at {slower:.2f} x the time a step: "
            f"{_command(experiment, change.fields)}"
        )
    if not fits and change is None:
        held = sum(facts["memory"][kind] for kind in ("parameters", "gradients", "optimizer state"))
        raise RunError(
            f"nothing makes {experiment.name} fit into {room / 1e9:.2f} GB: parameters, gradients and optimizer "
            f"state alone take {held / 1e9:.2f} GB; take a smaller model (see `largest` above) or another device"
        )
    return facts


def _plan_on_mesh(
    experiment: Experiment, device: Device, options: PlanOptions, console: Any
) -> dict[str, Any]:
    """Shows what one device of a mesh holds and sends; returns the same."""
    from rich.table import Table

    from zerotollm.planning.sharded_step import plan_on_mesh
    from zerotollm.planning.speed import flops_per_token
    from zerotollm.session.devices import mesh_lines

    shape = parse_mesh(options.mesh, "mesh")
    job = job_for(experiment, device.accelerator)
    planned = plan_on_mesh(job, shape, device, compiled=options.compile != "no")
    room = (options.memory_gb * 1e9 or device.memory_bytes) - (device.reserved_bytes or HOST_BYTES)
    needed = sum(planned.memory.values())
    tokens = job.batch_size * job.context
    best, worst = planned.seconds
    for line in mesh_lines(job.parameters(), shape):
        console.print(line, markup=False)
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
    left = room - needed
    row(
        "fits",
        f"{'yes' if left >= 0 else 'no'}, {_size(abs(left))} {'to spare' if left >= 0 else 'too much'}",
    )
    row("sent by a device", f"{_size(sum(planned.sent.values()))} a step, {planned.operations:,} operations")
    for kind, number in sorted(planned.sent.items()):
        row(f"  {kind}", _size(number))
    row(
        "a step",
        f"{planned.compute_seconds * 1e3:,.0f} ms of computing, {planned.sending_seconds * 1e3:,.0f} ms of sending: "
        f"{best * 1e3:,.0f} to {worst * 1e3:,.0f} ms, all or nothing of it at the same time",
    )
    row("speed", f"{tokens / worst:,.0f} to {tokens / best:,.0f} tokens/s")
    low, high = planned.efficiency
    row("scaling efficiency", f"{low:.0%} to {high:.0%} of {shape.size} devices that send nothing")
    console.print(table)
    return {
        "mesh": shape._asdict(),
        "memory": planned.memory,
        "xla_bytes": planned.xla_bytes,
        "fits": left >= 0,
        "sent": planned.sent,
        "compute_seconds": planned.compute_seconds,
        "sending_seconds": planned.sending_seconds,
        "efficiency": planned.efficiency,
        "flops_per_token": flops_per_token(job),
    }


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _facts(
    experiment: Experiment, job: Any, device: Device, room: float, options: PlanOptions
) -> dict[str, Any]:
    """Bytes, seconds and FLOPs: all that the table shows."""
    from zerotollm.planning.fit_memory import TOKENS_PER_PARAMETER, compute_optimal, largest
    from zerotollm.planning.memory import compile_step, memory_by_kind, process_peak, xla_memory
    from zerotollm.planning.speed import flops_per_token, predict

    memory, speed = memory_by_kind(job), predict(job, device)
    asks = options.compile == "yes" or (options.compile == "auto" and options.device == "this")
    xla = xla_memory(compile_step(job)) if asks else {}
    by_kind = sum(memory.values())
    needed = process_peak(xla, device.accelerator.platform) if xla else by_kind
    groups = parameters_by_group(job)
    tokens = experiment.train.steps * job.batch_size * job.context
    flops = flops_per_token(job)
    hours = tokens / speed.tokens_per_second / 3600
    facts = {
        "parameters": groups,
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
        "hours": hours,
        "kilowatt_hours": hours * device.watts / 1000 or None,
    }
    biggest = largest(job, room)
    budget = options.hours * 3600 * flops * speed.tokens_per_second
    best = compute_optimal(job.model, budget)
    for name, model in (("largest", biggest), ("compute_optimal", best)):
        if model:
            size = num_parameters(model)
            facts[name] = {
                "parameters": size,
                "width": model.width,
                "layers": model.num_layers,
                "tokens": TOKENS_PER_PARAMETER * size,
            }
    return facts


def parameters_by_group(job: Any) -> dict[str, int]:
    """Numbers in the parameter tree, by what they are for; adapters are beside it."""
    import math

    from zerotollm.training.lora import flatten_params

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


def trained_parameters(job: Any) -> int:
    """Numbers that an optimizer changes: all of the model's, some of these, or adapters."""
    import math

    from zerotollm.training.lora import flatten_params

    return sum(math.prod(leaf.shape) for _, leaf in flatten_params(job.state().params))


def _changed(experiment: Experiment, fields: dict[str, Any]) -> Experiment:
    for name, value in fields.items():
        part, field = name.split(".")
        experiment = replace(experiment, **{part: replace(getattr(experiment, part), **{field: value})})
    return experiment


def _options(fields: dict[str, Any]) -> str:
    return " ".join(with_value(*pair) for pair in fields.items())


def _command(experiment: Experiment, fields: dict[str, Any]) -> str:
    """To train so: what was typed, without what it says of the plan."""
    words = [("experiment", experiment.name), *fields.items()]
    return typed_again(fields, without=("plan", *PlanOptions.__dataclass_fields__)) or launch(*words)


def _table(
    experiment: Experiment, facts: dict[str, Any], device: Device, room: float, options: PlanOptions
) -> Any:
    """The plan as people read it."""
    from rich.table import Table

    from zerotollm.planning.memory import CPU_SCRATCH
    from zerotollm.planning.speed import FACTORS

    compute, shape = facts["compute"], experiment.data
    pairs = experiment.model.architecture == "encoder-decoder"
    precision = compute["precision"]
    groups, memory, xla = facts["parameters"], facts["memory"], facts["xla_memory"]
    platform = "gpu" if device.accelerator.platform == "gpu" else "cpu"
    table = Table(show_header=False, box=None, pad_edge=False)
    row = table.add_row
    row("device", f"{device.accelerator.kind or device.name}: {device.source}")
    row(
        "",
        f"{_size(device.memory_bytes)}, {device.bandwidth / 1e9:,.0f} GB/s, "
        f"{device.flops[precision] / 1e12:,.2f} TFLOP/s in {precision}",
    )
    size, trained = sum(groups.values()), facts["trained_parameters"]
    row(
        "parameters",
        f"{size:,}" + (f", {trained:,} of them or beside them trained" if trained != size else ""),
    )
    for group, number in groups.items():
        row(f"  {group.replace('_', ' ')}", f"{number:,}")
    row(
        "batch",
        f"{shape.batch_size} {'pairs' if pairs else 'windows'} of {shape.context} tokens{' a side' * pairs}, "
        f"{shape.batch_size // experiment.train.micro_batches} at once",
    )
    row(
        "computed in",
        f"{precision}, attention {compute['attention']}, cross-entropy {compute['cross_entropy']}, "
        f"remat {compute['remat']}",
    )
    row("FLOPs per token", f"{facts['flops_per_token'] / 1e9:,.3f} G, forward and backward")
    row("memory by kind", _size(sum(memory.values())))
    for kind, number in memory.items():
        row(f"  {kind}", _size(number))
    if xla:
        scratch = f", {CPU_SCRATCH - 1:.0%} for its matrix library" if platform == "cpu" else ""
        row("memory by XLA", f"{_size(facts['needed'])}, the step compiled here, for {_here()}{scratch}")
        for kind, number in xla.items():
            row(f"  {kind}", _size(number))
    left = room - facts["needed"]
    verdict = f"yes, {_size(left)} to spare" if left >= 0 else f"no, {_size(-left)} too much"
    row("fits", f"{verdict}, of {_size(room)}")
    row(
        "speed",
        f"about {facts['tokens_per_second']:,.0f} tokens/s, {facts['seconds_per_step'] * 1e3:,.0f} ms a step "
        f"({facts['floor_seconds'] * 1e3:,.0f} at the full rate), {facts['utilization']:.0%} utilization; "
        f"factors {FACTORS[platform].source}",
    )
    energy = f", {facts['kilowatt_hours']:,.2f} kWh" if facts["kilowatt_hours"] else ""
    row("the experiment", f"{facts['tokens']:,} tokens: {_time(facts['hours'])}{energy}")
    for name, words in (
        (
            "largest",
            f"that fits, {'one pair' if pairs else 'one window'} at a time and every block rematerialized",
        ),
        ("compute_optimal", f"for {options.hours:g} hours at this utilization"),
    ):
        model = facts.get(name)
        if model:
            row(
                name.replace("_", "-"),
                f"{model['parameters'] / 1e6:,.1f} M parameters, width {model['width']}, {model['layers']} layers, "
                f"{words}"
                + (f"; {model['tokens'] / 1e6:,.0f} M tokens" if name == "compute_optimal" else ""),
            )
    return table


def _here() -> str:
    import jax

    return jax.devices()[0].platform


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.1f} minutes"
