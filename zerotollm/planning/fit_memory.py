"""Changes that make a train step fit a memory budget, the cheapest first; and models of other sizes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from zerotollm.model.config import TransformerConfig, resolve, round_up
from zerotollm.planning.device_table import Device
from zerotollm.planning.flops import num_parameters
from zerotollm.planning.memory import Job, memory_by_kind
from zerotollm.planning.speed import predict

LIGHTER = {"none": ("none", "dots", "full"), "dots": ("dots", "full"), "full": ("full",)}
"""Rematerializations that keep as much or less."""
WIDTHS = range(64, 64 * 257, 64)
"""Of models considered."""
TOKENS_PER_PARAMETER = 20
"""Compute-optimal (Chinchilla, arXiv:2203.15556, table 3)."""


class Change(NamedTuple):
    """Fields to be given another value so that it fits, and what the step then takes."""

    fields: dict[str, Any]
    """dotted name to value"""
    job: Job
    bytes: int
    seconds: float


def cheapest_change(
    job: Job, room: float, device: Device, needed: Callable[[Job], int] | None = None
) -> Change | None:
    """The change after which a step needs at most `room` bytes and takes least time; None where there is none.

    What is tried: never all scores or logits at once, smaller micro-batches, rematerialization, and only where that
    is not enough moments in 16 bits. `needed` gives a job's bytes.
    """
    needed = needed or (lambda job: sum(memory_by_kind(job).values()))
    half = "float16" if job.resolved_compute().precision == "float16" else "bfloat16"
    kinds = [job.optimizer.moments]
    if job.optimizer.kind != "adafactor" and job.optimizer.moments == "float32":
        kinds.append(half)
    for moments in kinds:
        found = _smallest_accumulation(job, moments, room, needed)
        timed = [Change(fields, new, size, predict(new, device).seconds) for fields, new, size in found]
        if timed:
            return min(timed, key=lambda change: (change.seconds, len(change.fields)))
    return None


def _smallest_accumulation(
    job: Job, moments: str, room: float, needed: Callable[[Job], int]
) -> Iterator[tuple[dict[str, Any], Job, int]]:
    """For every rematerialization, chunked or as it is, the largest micro-batch that fits."""
    lean = replace(job.compute, cross_entropy="chunked")
    if not job.model.encoder_layers:  # an encoder's attention is plain
        lean = replace(lean, attention="chunked")
    ways = list(product(LIGHTER[job.compute.remat], dict.fromkeys((job.compute, lean))))
    for remat, compute in ways:
        for parts in range(job.train.micro_batches, job.batch_size + 1):
            if job.batch_size % parts:
                continue
            new = replace(
                job,
                compute=replace(compute, remat=remat),
                train=replace(job.train, micro_batches=parts),
                optimizer=replace(job.optimizer, moments=moments),
            )
            size = needed(new)
            if size <= room:
                yield _changed_fields(job, new), new, size
                break


def _changed_fields(old: Job, new: Job) -> dict[str, Any]:
    fields = {
        "train.micro_batches": (old.train.micro_batches, new.train.micro_batches),
        "compute.remat": (old.compute.remat, new.compute.remat),
        "compute.attention": (old.compute.attention, new.compute.attention),
        "compute.cross_entropy": (old.compute.cross_entropy, new.compute.cross_entropy),
        "optimizer.moments": (old.optimizer.moments, new.optimizer.moments),
    }
    return {name: after for name, (before, after) in fields.items() if before != after}


def sized(model: TransformerConfig, width: int) -> TransformerConfig:
    """The resolved model at another width, depth and feed-forward in proportion, heads as wide as they are."""
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
        ff_width=round_up(round(model.ff_width * ratio), 8),
    )
    return resolve(changed, vocab_size=model.vocab_size, context=model.max_length)


def largest(job: Job, room: float) -> TransformerConfig | None:
    """The widest model of the job's shape whose step fits with one window or pair at a time, every block
    rematerialized.

    Traced once, at the job's own size: what is held for parameters grows with them, what is held for tokens with
    width and depth.
    """
    lean = replace(
        job,
        batch_size=1,
        train=replace(job.train, micro_batches=1),
        compute=replace(
            job.compute, attention="chunked", cross_entropy="chunked", remat="full", scan_layers=True
        ),
    )

    kinds = memory_by_kind(lean)
    weights = sum(kinds[kind] for kind in ("parameters", "gradients", "optimizer state"))
    tokens = kinds["activations"] + kinds["workspace"]

    def needed(model: TransformerConfig) -> float:
        wider = model.width * model.num_layers / (job.model.width * job.model.num_layers)
        return weights * num_parameters(model) / num_parameters(job.model) + tokens * wider + kinds["logits"]

    fitting = (model for model in (sized(job.model, width) for width in WIDTHS) if needed(model) <= room)
    return max(fitting, key=lambda model: model.width, default=None)


def compute_optimal(model: TransformerConfig, flops: float) -> TransformerConfig:
    """The model of this shape whose training on 20 tokens a parameter takes about `flops`, counted as 6 N D."""
    wanted = math.sqrt(flops / 6 / TOKENS_PER_PARAMETER)
    sizes = (sized(model, width) for width in WIDTHS)
    return min(sizes, key=lambda size: abs(math.log(num_parameters(size) / wanted)))
