"""A train step on a mesh that is not here: memory of a device, what it sends, and how long a step takes.

XLA compiles the step for as many simulated CPU devices as the mesh has, from shapes alone, in another process. Its
partitioner inserts the collectives. A deep model is compiled with two and with three layers, and extrapolated.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from typing import NamedTuple

import jax

from zerotollm.errors import RunError, UsageError
from zerotollm.model.compute_config import ComputeConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.own_code import OwnCode
from zerotollm.planning.collectives import Collective, collectives
from zerotollm.planning.device_table import Device
from zerotollm.planning.flops import decoder_layers
from zerotollm.planning.memory import Job, copied_matrices, memory_by_kind, planned_peak, xla_memory
from zerotollm.planning.speed import predict
from zerotollm.sharding.config import MeshShape, parse_mesh
from zerotollm.sharding.rules import (
    Placement,
    bytes_per_device,
    check_divides,
    make_mesh,
    placed_shapes,
    shardings,
)
from zerotollm.training.config import OptimizerConfig, TrainConfig
from zerotollm.types import Json

COMPLETE_LAYERS = 4
"""Layers up to which a step is compiled with all of them."""


class MeshPlan(NamedTuple):
    """Prediction for one device and one step."""

    memory: dict[str, int]
    """bytes by kind"""
    xla_bytes: int
    """by XLA's account for a CPU, which computes half precision in float32; 0: not all layers were compiled"""
    sent: dict[str, int]
    """bytes sent, by kind of collective"""
    operations: int
    """collectives"""
    compute_seconds: float
    sending_seconds: float
    """inside nodes and between them, one after the other"""

    @property
    def seconds(self) -> tuple[float, float]:
        """Time of a step if sending overlaps computing completely, and if it never does."""
        both = self.compute_seconds, self.sending_seconds
        return max(both), sum(both)

    @property
    def efficiency(self) -> tuple[float, float]:
        """Computing's share of the time of a step: (lowest, highest)."""
        best, worst = self.seconds
        return self.compute_seconds / worst, self.compute_seconds / best


def local_job(job: Job, shape: MeshShape) -> Job:
    """Return the job of one device: its rows, heads, hidden units and vocabulary, at the full width.

    Raises UsageError if the mesh does not divide the job.
    """
    multiple = shape.rows * job.train.micro_batches
    if job.batch_size % multiple:
        raise UsageError(
            f"data.batch_size {job.batch_size} does not divide into {shape.rows} parts (mesh {shape}) in "
            f"{job.train.micro_batches} micro-batches: make it a multiple of {multiple}"
        )
    check_divides(job.parameters(), shape, heads=(job.model.num_heads, job.model.num_kv_heads))
    model = replace(
        job.model,
        num_heads=job.model.num_heads // shape.tensor,
        num_kv_heads=job.model.num_kv_heads // shape.tensor,
        ff_width=job.model.ff_width // shape.tensor,
        vocab_size=job.model.vocab_size // shape.tensor,
    )
    return replace(job, model=model, batch_size=job.batch_size // shape.rows)


def memory_on_mesh(job: Job, shape: MeshShape) -> dict[str, int]:
    """Return the bytes of one device as `memory_by_kind`, and what is gathered of split parameters."""
    local, state, compute = local_job(job, shape), job.state(), job.resolved_compute()
    kinds, copied = memory_by_kind(local), copied_matrices(local)
    kinds["workspace"] -= copied - copied // shape.fsdp  # copies are split like the parameters
    gradients = bytes_per_device(state.params, shape)
    parameters = job.parameters()
    if not job.model.tie_embeddings:  # only rows of the embedding table are gathered
        parameters = {name: tree for name, tree in parameters.items() if name != "embedding"}
    gathered = bytes_per_device(parameters, shape._replace(fsdp=1))
    # A loop holds one layer at a time. Otherwise the backward pass uses again what the forward pass gathered.
    layers = decoder_layers(job.model) + job.model.encoder_layers if compute.scan_layers else 1
    width = 4 if compute.precision == "float32" else 2
    return {
        "parameters": bytes_per_device((state.params, state.frozen), shape),
        "gradients": gradients * (2 if job.train.micro_batches > 1 else 1),
        "optimizer state": bytes_per_device(state.opt_state, shape),
        "gathered": 0 if shape.fsdp == 1 else gathered * width // 4 // layers,
        **{kind: kinds[kind] for kind in ("activations", "logits", "workspace")},
        "shared": max(kinds["shared"], -gradients),
    }


def plan_on_mesh(job: Job, shape: MeshShape, device: Device, *, compiled: bool = True) -> MeshPlan:
    """Return the plan of one device of the mesh; unless it is `compiled`, without what is sent.

    Raises UsageError if the mesh does not divide the job, RunError if XLA cannot compile it.
    """
    local = local_job(job, shape)
    plain = replace(local, optimizer=OptimizerConfig(kind="sgd"))
    without_update, seconds = predict(plain, device).seconds, predict(local, device).seconds
    # All devices share the work of the update.
    seconds = without_update + max(0.0, seconds - without_update) / shape.rows
    sent, operations, xla = _compiled(job, shape, device.node) if compiled and shape.size > 1 else ({}, 0, 0)
    by_kind: Counter[str] = Counter()
    sending = 0.0
    for (kind, between), size in sent.items():
        by_kind[kind] += size
        sending += size / (device.network if between else device.link)
    return MeshPlan(memory_on_mesh(job, shape), xla, dict(by_kind), operations, seconds, sending)


Sent = dict[tuple[str, bool], int]
"""(kind of collective, whether it crosses nodes) -> bytes that a device sends"""


def _compiled(job: Job, shape: MeshShape, node: int) -> tuple[Sent, int, int]:
    """Return (bytes sent, operations, XLA's bytes of a device).

    For a deep model the first two are extrapolated from two and three layers. The third is 0: memory does not grow as
    evenly.
    """
    layers = job.model.num_layers
    if layers <= COMPLETE_LAYERS:
        return _compile_in_process(job, shape, node)
    (two, few, _), (three, more, _) = (
        _compile_in_process(replace(job, model=replace(job.model, num_layers=number)), shape, node)
        for number in (2, 3)
    )
    times = layers - 2
    sent = {key: two.get(key, 0) + times * (three.get(key, 0) - two.get(key, 0)) for key in two | three}
    return {key: max(0, size) for key, size in sent.items()}, few + times * (more - few), 0


def _compile_in_process(job: Job, shape: MeshShape, node: int) -> tuple[Sent, int, int]:
    request = {
        "model": asdict(job.model),
        "optimizer": asdict(job.optimizer),
        "train": asdict(job.train),
        "compute": asdict(replace(job.resolved_compute(), scan_layers=False)),
        "batch": {"batch_size": job.batch_size, "context": job.context, "masked": job.masked},
        "code": asdict(job.code),
        "mesh": str(shape),
        "node": node,
    }
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={shape.size}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "zerotollm.planning.sharded_step"],
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RunError(f"the step could not be compiled for {shape.size} devices: {last[:200]}")
    answer = json.loads(done.stdout)
    sent: Counter[tuple[str, bool]] = Counter()
    for *fields, times in answer["collectives"]:
        collective = Collective(*fields)
        sent[collective.kind, collective.spans > 1] += times * collective.sent
    return sent, sum(times for *_, times in answer["collectives"]), answer["bytes"]


def main() -> None:
    """Compile the request on standard input, in a process that has the simulated devices, and write the answer."""
    request: Json = json.load(sys.stdin)
    train = TrainConfig(**request["train"])
    job = Job(
        TransformerConfig(**request["model"]),
        OptimizerConfig(**request["optimizer"]),
        train,
        ComputeConfig(**request["compute"]),
        **request["batch"],
        code=OwnCode(**request["code"]),
    )
    mesh = make_mesh(parse_mesh(request["mesh"]))
    with jax.set_mesh(mesh):
        training = job.training()
        abstract = jax.eval_shape(training.init, 0, None)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        step = jax.jit(
            lambda state, batch: training.train_step(state, batch, train.seed),
            donate_argnums=0,
            out_shardings=(shardings(abstract, mesh), everywhere),
        )
        batch = Placement(mesh, train.micro_batches).shapes(
            {name: (x.shape, x.dtype) for name, x in job.batch().items()}
        )
        compiled = step.lower(placed_shapes(abstract, mesh), batch).compile()
    counts = collectives(compiled.as_text() or "", request["node"])
    answer = {
        "bytes": planned_peak(xla_memory(compiled)),
        "collectives": [(*collective, times) for collective, times in counts.items()],
    }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
