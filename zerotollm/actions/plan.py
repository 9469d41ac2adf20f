"""plan: whether an experiment fits a device, how long it takes, and what fits better; nothing is allocated."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from zerotollm.actions.config import PlanOptions
from zerotollm.console import Console
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.model.accelerator import this_accelerator
from zerotollm.planning.device_benchmark import measure_this, trouble_here
from zerotollm.planning.device_table import Device, find
from zerotollm.planning.fit_memory import Fields, cheapest_change
from zerotollm.planning.memory import Job
from zerotollm.planning.report import Plan, mesh_table, plan_step, plan_table, room_of
from zerotollm.planning.sharded_step import plan_on_mesh
from zerotollm.planning.speed import flops_per_token
from zerotollm.session.devices import mesh_lines
from zerotollm.session.job import job_for
from zerotollm.session.prepared_sizes import prepared_size
from zerotollm.sharding.config import parse_mesh
from zerotollm.shell import launch, typed_again, with_value
from zerotollm.studies.suite import changed

MOST_HOURS = 10**9
"""100,000 years."""


def plan(experiment: Experiment, run_dir: Path, options: PlanOptions) -> Plan | dict[str, Any]:
    """Show the memory and speed of a run on a device, and return the same.

    The model is traced, and compiled if `options.compile` says so. Neither text nor tokenizer is read; a corpus of
    labels is read for their number. Raises UsageError for an unknown device or an option out of range, RunError if
    nothing fits.
    """
    if not 0 < options.hours <= MOST_HOURS or options.memory_gb < 0:
        raise UsageError(
            f"hours is {options.hours} and memory_gb {options.memory_gb}: take above 0 hours, at most {MOST_HOURS:,}, "
            "and at least 0 GB"
        )
    console = Console(highlight=False, soft_wrap=True)
    device = _device(experiment, options, console)
    room, job = room_of(device, options.memory_gb), job_for(experiment, device.accelerator)
    if options.mesh:
        return _plan_on_mesh(job, device, room, options, console)
    compiled = options.compile == "yes" or (options.compile == "auto" and options.device == "this")

    def plan_of(job: Job, planned: Experiment) -> Plan:
        return plan_step(
            job,
            device,
            room,
            steps=planned.train.steps,
            hours=options.hours,
            compiled=compiled,
            given=planned.model,
            job_of=lambda model: job_for(replace(planned, model=model), device.accelerator),
        )

    result, change = plan_of(job, experiment), None
    fits = result["needed"] <= room
    if not fits:
        # XLA needs as much more than the prediction by kind after the change.
        factor = result["needed"] / sum(result["memory"].values())
        change = cheapest_change(job, room / factor, device)
        if change and options.fit:
            job = change.job
            result = plan_of(job, changed(experiment, change.fields))
    result["fits"] = result["needed"] <= room
    if size := prepared_size(experiment):
        result["corpus_tokens"], result["epochs"] = size.tokens, size.epochs(experiment)
    console.print(plan_table(result, job, device, options.hours))
    if result["compute_optimal"]["width"] != job.model.width:
        fields = result["compute_optimal_fields"]
        again = typed_again(fields) or launch(("experiment", experiment.name), "plan", *fields.items())
        console.print(f"plan the model for {options.hours:g} hours: {again}")
    if not size:
        console.print(f"tokens of the corpus, and epochs: known after {_command(experiment, {})} prepare")
    if change:
        result["change"], result["change_seconds_per_step"] = change.fields, change.seconds
        command = _command(experiment, change.fields)
        if options.fit:
            console.print(f"the command that fits: {command}")
        else:
            slower = change.seconds / result["seconds_per_step"]
            words = " ".join(with_value(*pair) for pair in change.fields.items())
            console.print(
                f"does not fit; with {words} it would, at {slower:.2f} x the time a step: {command}"
            )
    elif not fits:
        state = sum(result["memory"][kind] for kind in ("parameters", "gradients", "optimizer state"))
        raise RunError(
            f"nothing makes {experiment.name} fit into {room / 1e9:.2f} GB: parameters, gradients and optimizer "
            f"state alone take {state / 1e9:.2f} GB; take a smaller model (see `largest` above) or another device"
        )
    return result


def _device(experiment: Experiment, options: PlanOptions, console: Console) -> Device:
    """Return the device of the table, or measure this one."""
    if options.device != "this":
        return find(options.device)
    if trouble := trouble_here():
        console.print(trouble)
    precision = experiment.compute.precision
    return measure_this(this_accelerator().half() if precision == "auto" else precision)


def _plan_on_mesh(
    job: Job, device: Device, room: float, options: PlanOptions, console: Console
) -> dict[str, Any]:
    """Show the memory and communication of one device of a mesh, and return the same."""
    shape = parse_mesh(options.mesh, "mesh")
    planned = plan_on_mesh(job, shape, device, compiled=options.compile != "no")
    for line in mesh_lines(job.parameters(), shape):
        console.print(line, markup=False)
    console.print(mesh_table(planned, job, shape, device, room))
    return {
        "mesh": shape._asdict(),
        "memory": planned.memory,
        "xla_bytes": planned.xla_bytes,
        "fits": sum(planned.memory.values()) <= room,
        "sent": planned.sent,
        "compute_seconds": planned.compute_seconds,
        "sending_seconds": planned.sending_seconds,
        "efficiency": planned.efficiency,
        "flops_per_token": flops_per_token(job),
    }


def _command(experiment: Experiment, fields: Fields) -> str:
    """Return the command that trains with these fields: the one typed, without the plan's options."""
    words = [("experiment", experiment.name), *fields.items()]
    return typed_again(fields, without=("plan", *PlanOptions.__dataclass_fields__)) or launch(*words)
