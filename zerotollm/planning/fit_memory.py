"""Changes that make a train step fit a memory budget, the cheapest first; and models of other sizes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from zerotollm.model.config import TransformerConfig, resolve, round_up
from zerotollm.planning.device_table import Device
from zerotollm.planning.flops import num_parameters, train_flops
from zerotollm.planning.memory import Job, memory_by_kind
from zerotollm.planning.speed import predict

LIGHTER = {"none": ("none", "dots", "full"), "dots": ("dots", "full"), "full": ("full",)}
"""Values of `compute.remat` that keep as much or less, the most first."""
WIDTHS = range(64, 64 * 257, 64)
"""Widths of the models considered."""
TOKENS_PER_PARAMETER = 20
"""Compute-optimal (Chinchilla, arXiv:2203.15556, table 3)."""

Fields = dict[str, str | int]
"""dotted name -> new value"""


class Change(NamedTuple):
    """New values of fields with which a step fits, and its cost."""

    fields: Fields
    job: Job
    bytes: int
    seconds: float


def cheapest_change(job: Job, room: float, device: Device) -> Change | None:
    """Return the fastest step that needs at most `room` bytes; None if there is none.

    It may compute attention and logits in chunks, split the batch into more micro-batches and rematerialize. Moments in
    16 bits are tried only if that is not enough.
    """
    half = "float16" if job.resolved_compute().precision == "float16" else "bfloat16"
    kinds = [job.optimizer.moments]
    if job.optimizer.kind != "adafactor" and job.optimizer.moments == "float32":
        kinds.append(half)
    for moments in kinds:
        changes = list(_fitting_changes(job, moments, room, device))
        if changes:
            return min(changes, key=lambda change: (change.seconds, len(change.fields)))
    return None


def _fitting_changes(job: Job, moments: str, room: float, device: Device) -> Iterator[Change]:
    """Yield the largest micro-batch that fits, for every rematerialization, chunked or not."""
    chunked = replace(job.compute, cross_entropy="chunked")
    if not job.model.encoder_layers:  # an encoder's attention is plain
        chunked = replace(chunked, attention="chunked")
    divisors = [n for n in range(job.train.micro_batches, job.batch_size + 1) if job.batch_size % n == 0]
    for remat, compute in product(LIGHTER[job.compute.remat], dict.fromkeys((job.compute, chunked))):
        for micro_batches in divisors:
            new = replace(
                job,
                compute=replace(compute, remat=remat),
                train=replace(job.train, micro_batches=micro_batches),
                optimizer=replace(job.optimizer, moments=moments),
            )
            size = sum(memory_by_kind(new).values())
            if size <= room:
                yield Change(_changed_fields(job, new), new, size, predict(new, device).seconds)
                break


def _changed_fields(old: Job, new: Job) -> Fields:
    before, after = (
        {
            "train.micro_batches": job.train.micro_batches,
            "compute.remat": job.compute.remat,
            "compute.attention": job.compute.attention,
            "compute.cross_entropy": job.compute.cross_entropy,
            "optimizer.moments": job.optimizer.moments,
        }
        for job in (old, new)
    )
    return {name: value for name, value in after.items() if value != before[name]}


def sized(model: TransformerConfig, width: int) -> TransformerConfig:
    """Return the resolved model at another width, with depth and feed-forward in proportion and heads as wide."""
    ratio = width / model.width
    heads = max(1, width // model.head_width)
    group = model.num_heads // model.num_kv_heads
    while heads % group:
        group -= 1
    changed = replace(
        model,
        width=width,
        num_layers=max(1, round(model.num_layers * ratio)),
        encoder_layers=max(1, round(model.encoder_layers * ratio)) if model.encoder_layers else 0,
        num_heads=heads,
        num_kv_heads=heads // group,
        ff_width=0 if _derives_ff_width(model) else round_up(round(model.ff_width * ratio), 8),
    )
    return resolve(changed, vocab_size=model.vocab_size, context=model.max_length)


def _derives_ff_width(model: TransformerConfig) -> bool:
    derived = resolve(replace(model, ff_width=0), vocab_size=model.vocab_size, context=model.max_length)
    return derived == model


def size_fields(given: TransformerConfig, model: TransformerConfig, steps: int) -> Fields:
    """Return the fields that give an experiment, whose model is `given`, the size of `model`, and its steps."""
    fields: dict[str, int] = {name: getattr(model, name) for name in ("width", "num_layers", "num_heads")}
    if given.head_width or model.width % model.num_heads:
        fields["head_width"] = model.head_width
    if given.num_kv_heads:
        fields["num_kv_heads"] = model.num_kv_heads
    resolved = resolve(replace(given, **fields), vocab_size=model.vocab_size, context=model.max_length)
    for name in ("encoder_layers", "head_width", "num_kv_heads", "ff_width"):
        if getattr(resolved, name) != getattr(model, name):
            fields[name] = getattr(model, name)
    return {**{f"model.{name}": value for name, value in fields.items()}, "train.steps": steps}


def largest(job: Job, room: float) -> TransformerConfig | None:
    """Return the widest model of the job's shape that fits with one window or pair at a time and full remat.

    It is traced once, at the job's own size: memory for parameters grows with them, memory for tokens with width and
    depth.
    """
    compute = replace(
        job.compute, attention="chunked", cross_entropy="chunked", remat="full", scan_layers=True
    )
    kinds = memory_by_kind(
        replace(job, batch_size=1, train=replace(job.train, micro_batches=1), compute=compute)
    )
    weights = sum(kinds[kind] for kind in ("parameters", "gradients", "optimizer state"))
    tokens = kinds["activations"] + kinds["workspace"]

    def needed(model: TransformerConfig) -> float:
        wider = model.width * model.num_layers / (job.model.width * job.model.num_layers)
        return weights * num_parameters(model) / num_parameters(job.model) + tokens * wider + kinds["logits"]

    fitting = (model for model in (sized(job.model, width) for width in WIDTHS) if needed(model) <= room)
    return max(fitting, key=lambda model: model.width, default=None)


def compute_optimal(
    job: Job, device: Device, hours: float, job_of: Callable[[TransformerConfig], Job]
) -> tuple[TransformerConfig, float]:
    """Return the model of the job's shape whose training on 20 tokens a parameter takes about `hours`, and its hours.

    Models of other sizes use the device better or worse, so the step of the model that is returned is predicted, too:
    that of `job_of` it, which chooses anew how it is computed.
    """
    sizes = [sized(job.model, width) for width in WIDTHS]
    model, predicted = job.model, dict[TransformerConfig, float]()
    while model not in predicted:
        speed = predict(job_of(model), device).tokens_per_second
        predicted[model] = TOKENS_PER_PARAMETER * num_parameters(model) / speed / 3600
        flops = hours / predicted[model] * _optimal_flops(model, job.context)
        model = min(sizes, key=lambda size: abs(math.log(_optimal_flops(size, job.context) / flops)))
    return min(predicted.items(), key=lambda item: abs(math.log(item[1] / hours)))


def _optimal_flops(model: TransformerConfig, context: int) -> int:
    return TOKENS_PER_PARAMETER * num_parameters(model) * train_flops(model, context)
