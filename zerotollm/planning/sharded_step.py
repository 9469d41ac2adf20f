"""A train step on a mesh that is not here: memory of a device, what it sends, and how long a step takes.

The step is compiled for as many made-up CPU devices as the mesh has, from shapes alone and in a process of its own,
with two and with three layers: what a layer adds is multiplied. XLA's partitioner put in what moves numbers.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from typing import NamedTuple

from zerotollm.errors import RunError, UsageError
from zerotollm.model.config import TransformerConfig
from zerotollm.planning.collectives import Collective, collectives
from zerotollm.planning.device_table import Device
from zerotollm.planning.flops import decoder_layers
from zerotollm.planning.memory import Job, copied_matrices, memory_by_kind
from zerotollm.planning.speed import predict
from zerotollm.sharding.config import MeshShape, parse_mesh
from zerotollm.sharding.rules import bytes_per_device, check_divides
from zerotollm.training.config import OptimizerConfig

WHOLE = 4
"""Layers up to which a step is compiled whole."""


class MeshPlan(NamedTuple):
    """Of one device and one step."""

    memory: dict[str, int]
    """bytes by kind"""
    xla_bytes: int
    """by XLA's account for a CPU, which computes half precision in float32; 0: not compiled whole"""
    sent: dict[str, int]
    """bytes sent, by kind of collective"""
    operations: int
    """collectives"""
    compute_seconds: float
    sending_seconds: float
    """inside nodes and between them, nothing at the same time"""

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: where all is sent while something is computed, and where nothing is."""
        both = self.compute_seconds, self.sending_seconds
        return max(both), sum(both)

    @property
    def efficiency(self) -> tuple[float, float]:
        """Computing's share of a step: at worst, at best."""
        best, worst = self.seconds
        return self.compute_seconds / worst, self.compute_seconds / best


def share(job: Job, shape: MeshShape) -> Job:
    """The job of one device: its rows, its heads, hidden units and vocabulary, all of the residual stream.

    Raises UsageError where the mesh does not divide the job.
    """
    rows = shape.rows * job.train.micro_batches
    if job.batch_size % rows:
        raise UsageError(
            f"data.batch_size {job.batch_size} does not go to {shape.rows} parts (mesh {shape}) in "
            f"{job.train.micro_batches} micro-batches: make it a multiple of {rows}"
        )
    check_divides(job.parameters(), shape, heads=(job.model.num_heads, job.model.num_kv_heads))
    number = shape.tensor
    model = replace(
        job.model,
        num_heads=job.model.num_heads // number,
        num_kv_heads=job.model.num_kv_heads // number,
        ff_width=job.model.ff_width // number,
        vocab_size=job.model.vocab_size // number,
    )
    return replace(job, model=model, batch_size=job.batch_size // shape.rows)


def memory_on_mesh(job: Job, shape: MeshShape) -> dict[str, int]:
    """Bytes of one device by kind, as `memory_by_kind`; and what is gathered of parameters that are split."""
    mine, state = share(job, shape), job.state()
    held, copied = memory_by_kind(mine), copied_matrices(mine)
    held["workspace"] -= copied - copied // shape.fsdp  # copies are split like what they copy
    parameters = bytes_per_device((state.params, state.frozen), shape)
    gradients = bytes_per_device(state.params, shape)
    gathered = job.parameters()
    if not job.model.tie_embeddings and "embedding" in gathered:  # of which rows are fetched
        gathered = {name: tree for name, tree in gathered.items() if name != "embedding"}
    whole = bytes_per_device(gathered, shape._replace(fsdp=1))
    # In a loop one layer's are there at a time; else the backward pass uses again what the forward pass gathered.
    layers = decoder_layers(job.model) + job.model.encoder_layers if job.how().scan_layers else 1
    width = 4 if job.how().precision == "float32" else 2
    return {
        "parameters": parameters,
        "gradients": gradients * (2 if job.train.micro_batches > 1 else 1),
        "optimizer state": bytes_per_device(state.opt_state, shape),
        "gathered": 0 if shape.fsdp == 1 else whole * width // 4 // layers,
        **{kind: held[kind] for kind in ("activations", "logits", "workspace")},
        "shared": max(held["shared"], -gradients),
    }


def plan_on_mesh(job: Job, shape: MeshShape, device: Device, *, compiled: bool = True) -> MeshPlan:
    """Raises UsageError where the mesh does not divide the job, RunError where XLA cannot compile it."""
    mine = share(job, shape)
    plain = replace(mine, optimizer=OptimizerConfig(kind="sgd"))
    base, whole = predict(plain, device).seconds, predict(mine, device).seconds
    # The work of the update goes to all devices.
    seconds = base + max(0.0, whole - base) / shape.rows
    sent, operations, xla = _compiled(job, shape, device.node) if compiled and shape.size > 1 else ({}, 0, 0)
    by_kind: Counter[str] = Counter()
    sending = 0.0
    for (kind, between), size in sent.items():
        by_kind[kind] += size
        sending += size / (device.network if between else device.link)
    return MeshPlan(memory_on_mesh(job, shape), xla, dict(by_kind), operations, seconds, sending)


Sent = dict[tuple[str, bool], int]
"""(kind of collective, whether it goes from node to node) -> bytes that a device sends"""


def _compiled(job: Job, shape: MeshShape, node: int) -> tuple[Sent, int, int]:
    """Bytes sent, operations, and XLA's bytes for a device. Of a deep model what is sent for all layers, from programs
    of two and three, and 0: memory does not grow so evenly."""
    layers = job.model.num_layers
    if layers <= WHOLE:
        return _ask(job, shape, node)
    (two, few, _), (three, more, _) = (
        _ask(replace(job, model=replace(job.model, num_layers=number)), shape, node) for number in (2, 3)
    )
    times = layers - 2
    sent = {key: two.get(key, 0) + times * (three.get(key, 0) - two.get(key, 0)) for key in two | three}
    return {key: max(0, size) for key, size in sent.items()}, few + times * (more - few), 0


def _ask(job: Job, shape: MeshShape, node: int) -> tuple[Sent, int, int]:
    parts = {
        "model": asdict(job.model),
        "optimizer": asdict(job.optimizer),
        "train": asdict(job.train),
        "compute": asdict(replace(job.how(), scan_layers=False)),
        "rest": [job.batch_size, job.context, job.masked],
        "mesh": str(shape),
        "node": node,
    }
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={shape.size}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "zerotollm.planning.sharded_step"],
        input=json.dumps(parts),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise RunError(f"the step could not be compiled for {shape.size} devices: {last[:200]}")
    answer = json.loads(done.stdout)
    sent: Sent = {}
    for *listed, times in answer["collectives"]:
        one = Collective(*listed)
        key = one.kind, one.spans > 1
        sent[key] = sent.get(key, 0) + times * one.sent
    return sent, sum(times for *_, times in answer["collectives"]), answer["bytes"]


def main() -> None:
    """Compiles what standard input describes, in a process that has the devices."""
    import jax

    from zerotollm.model.compute_config import ComputeConfig
    from zerotollm.planning.memory import planned_peak, xla_memory
    from zerotollm.sharding.rules import Placement, make_mesh, placed_shapes, shardings
    from zerotollm.training.config import TrainConfig

    asked = json.load(sys.stdin)
    model, optimizer = TransformerConfig(**asked["model"]), OptimizerConfig(**asked["optimizer"])
    train, compute = TrainConfig(**asked["train"]), ComputeConfig(**asked["compute"])
    job = Job(model, optimizer, train, compute, *asked["rest"])
    mesh = make_mesh(parse_mesh(asked["mesh"]))
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
    found = collectives(compiled.as_text(), asked["node"])
    answer = {
        "bytes": planned_peak(xla_memory(compiled)),
        "collectives": [(*one, times) for one, times in found.items()],
    }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
