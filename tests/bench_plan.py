"""What `plan` predicts against what is measured, over many configurations, on the device that is here.

    python tests/bench_plan.py [--rounds 3] [--only NAME ...] [--json FILE]
    python tests/bench_plan.py --meshes "data=8" "data=2 fsdp=4"

Each configuration gets two new processes: in one the most memory that steps hold is measured, in the other their
speed, as in training. On a CPU memory is the process's peak while steps run, above what it held before, plus the
state; on a GPU the allocator's peak. Prints the table that is kept in docs/explanation/planning.md. With --meshes: the
memory of a device of meshes, made of as many fake devices of a CPU, a share of the process's peak.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from zerotollm.host.allocator import reuse_memory  # noqa: E402
from zerotollm.model.compute_config import ComputeConfig  # noqa: E402
from zerotollm.model.config import TransformerConfig, resolve  # noqa: E402
from zerotollm.planning.memory import CPU_SCRATCH  # noqa: E402
from zerotollm.training.config import OptimizerConfig, TrainConfig  # noqa: E402

MUON, ADAMW = OptimizerConfig(), OptimizerConfig(kind="adamw", learning_rate=1e-3)
CHUNKED = ComputeConfig(attention="chunked", cross_entropy="chunked")
SECONDS = 4.0
"""Of steps measured."""


def jobs():
    """Name to Job: sizes, contexts, vocabularies, optimizers and every way to save memory."""
    from zerotollm.planning.memory import Job

    def job(layers, width, heads, vocab, context, rows, *, optimizer=MUON, compute=None, parts=1, **model):
        config = TransformerConfig(num_layers=layers, width=width, num_heads=heads, **model)
        return Job(
            resolve(config, vocab_size=vocab, context=context),
            optimizer,
            TrainConfig(micro_batches=parts),
            compute or ComputeConfig(),
            rows,
            context,
        )

    return {
        "base": job(4, 192, 3, 4096, 256, 4, dropout=0.1),
        "base-wide": job(4, 384, 6, 4096, 256, 8),
        "narrow": job(4, 128, 2, 2048, 256, 8),
        "deep": job(12, 256, 4, 4096, 256, 8, optimizer=ADAMW),
        "deep-scan": job(12, 256, 4, 4096, 256, 8, optimizer=ADAMW, compute=ComputeConfig(scan_layers=True)),
        "long": job(4, 256, 4, 4096, 1024, 4),
        "long-plain": job(4, 256, 4, 4096, 1024, 4, compute=ComputeConfig(attention="plain")),
        "vocabulary": job(4, 256, 4, 32768, 512, 4),
        "vocabulary-chunked": job(4, 256, 4, 32768, 512, 4, compute=CHUNKED),
        "remat-dots": job(6, 384, 6, 8192, 512, 8, compute=ComputeConfig(remat="dots")),
        "remat-full": job(6, 384, 6, 8192, 512, 8, compute=ComputeConfig(remat="full")),
        "remat-none": job(6, 384, 6, 8192, 512, 8),
        "accumulated": job(6, 512, 8, 8192, 256, 16, parts=4, optimizer=ADAMW),
        "gqa-gelu": job(6, 320, 5, 4096, 256, 8, num_kv_heads=1, feed_forward="gelu", tie_embeddings=True),
        "sgd": job(4, 512, 8, 16384, 256, 4, optimizer=OptimizerConfig(kind="sgd", learning_rate=0.1)),
        "gpt2-cut": job(4, 768, 12, 16384, 512, 2, compute=CHUNKED, tie_embeddings=True),
    }


def measure(name, what):
    """In a process of its own: {"peak": bytes} or {"seconds": of the median step}."""
    job = jobs()[name]
    if what == "seconds":
        reuse_memory(job.batch_size * job.context * job.model.width)
    import jax

    from tests.functions import init_state
    from zerotollm.planning.memory import planned_peak, tree_bytes, xla_memory

    batch = jax.device_put(random_batch(job))
    state = jax.jit(lambda: init_state(job.model, job.optimizer, job.train, compute=job.compute))()
    compiled = job.step().lower(state, batch).compile()
    for _ in range(2):
        state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    if what == "peak":
        result = {"xla": planned_peak(xla_memory(compiled))}
        statistics = jax.devices()[0].memory_stats()
        if statistics:
            return result | {"peak": statistics["peak_bytes_in_use"]}
        peak, state = peak_of(compiled, state, batch)
        return result | {"peak": peak + tree_bytes((state, batch))}
    taken, end = [], time.perf_counter() + SECONDS
    while len(taken) < 3 or time.perf_counter() < end:
        begun = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - begun)
    return {"seconds": sorted(taken)[len(taken) // 2]}


def random_batch(job):
    """Full windows of random tokens."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, job.model.vocab_size, (job.batch_size, job.context + 1)).astype(np.int32)
    ones = np.ones(tokens[:, 1:].shape, np.float32)
    segments = np.zeros(ones.shape, np.int32)
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments, "weights": ones}


def peak_of(compiled, state, batch):
    """Most bytes of a process on a CPU while steps run, over those before; and the state."""
    import jax

    for _ in range(2):
        state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    for _ in range(3):
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
    return status("VmHWM") - before, state


def measure_mesh(text):
    """Likewise, on a mesh, in a process that has the devices: {"peak": bytes of a device, "xla": likewise}."""
    import jax

    from tests.functions import init_state, make_train_step
    from zerotollm.planning.memory import planned_peak, xla_memory
    from zerotollm.sharding.config import parse_mesh
    from zerotollm.sharding.rules import Placement, make_mesh, placed_shapes, shardings

    job, mesh = mesh_job(), make_mesh(parse_mesh(text))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(mesh):
        init = partial(init_state, job.model, job.optimizer, job.train, compute=job.compute)
        places = shardings(jax.eval_shape(init), mesh)
        state = jax.jit(init, out_shardings=places)()
        batch = Placement(mesh, 1).place_whole(random_batch(job))
        how = {"masked": job.masked, "compute": job.compute, "out_shardings": (places, everywhere)}
        step = make_train_step(job.model, job.optimizer, job.train, **how)
        shapes = placed_shapes(jax.eval_shape(init), mesh)
        compiled = step.lower(shapes, batch).compile()
        held = sum(
            shard.data.nbytes for x in jax.tree.leaves((state, batch)) for shard in x.addressable_shards
        )
        peak, _ = peak_of(compiled, state, batch)
    return {"peak": (peak + held) / mesh.size, "xla": planned_peak(xla_memory(compiled))}


def mesh_job():
    """What is planned and measured on every mesh."""
    from zerotollm.planning.memory import Job

    model = resolve(TransformerConfig(num_layers=4, width=256, num_heads=4), vocab_size=4096, context=256)
    plain = ComputeConfig(precision="float32", attention="plain", cross_entropy="plain")
    return Job(model, MUON, TrainConfig(), plain, 32, 256)


def show_meshes(texts):
    from zerotollm.planning.sharded_step import memory_on_mesh
    from zerotollm.sharding.config import parse_mesh

    heads = ("a device, MB", "planned by XLA", "error", "by kind", "error")
    print("| mesh |", " | ".join(heads), "|")
    print("|---" * (len(heads) + 1) + "|")
    for text in texts:
        shape = parse_mesh(text)
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={shape.size}"
        measured = in_new_process("--measure-mesh", text, XLA_FLAGS=flags)
        planned, kinds = CPU_SCRATCH * measured["xla"], sum(memory_on_mesh(mesh_job(), shape).values())
        cells = [measured["peak"], planned, kinds]
        peak, planned, kinds = (f"{cell / 1e6:,.0f}" for cell in cells)
        errors = [f"{cell / cells[0] - 1:+.0%}" for cell in cells[1:]]
        print(f"| `{text}` | {peak} | {planned} | {errors[0]} | {kinds} | {errors[1]} |", flush=True)


def status(key):
    """A line of /proc/self/status, in bytes."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def in_new_process(*words, **environment):
    """What it prints."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", default="")
    parser.add_argument(
        "--rounds", type=int, default=1, help="processes for a speed, of which the fastest counts"
    )
    parser.add_argument("--meshes", nargs="*", default=[])
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "WHAT"))
    parser.add_argument("--measure-mesh", metavar="MESH")
    options = parser.parse_args()
    if options.measure or options.measure_mesh:
        print(
            json.dumps(measure(*options.measure) if options.measure else measure_mesh(options.measure_mesh))
        )
        return
    if options.meshes:
        show_meshes(options.meshes)
        return
    from zerotollm.planning.device_benchmark import measure_this
    from zerotollm.planning.memory import memory_by_kind
    from zerotollm.planning.speed import counted, predict

    device = measure_this("float32")
    print(
        f"{device.flops['float32'] / 1e9:,.0f} GFLOP/s, {device.bandwidth / 1e9:.1f} GB/s; {os.cpu_count()} cores"
    )
    scratch = CPU_SCRATCH if device.accelerator.platform == "cpu" else 1.0
    heads = ("memory, MB", "planned", "error", "by kind", "error", "tokens/s", "predicted", "error")
    print("| configuration |", " | ".join(heads), "|")
    print("|---" * (len(heads) + 1) + "|")
    rows = []
    for name, job in jobs().items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as cache:
            # The later processes need not compile what the first one did.
            peak, *seconds = (
                in_new_process("--measure", name, what, JAX_COMPILATION_CACHE_DIR=cache)
                for what in ("peak", *["seconds"] * options.rounds)
            )
        # What else a machine does can only make a step slower.
        measured = peak | min(seconds, key=lambda one: one["seconds"])
        kinds, speed, counts = memory_by_kind(job), predict(job, device), counted(job)
        planned = sum(kinds.values())
        tokens = job.batch_size * job.context / measured["seconds"]
        cells = [
            f"{measured['peak'] / 1e6:,.0f}",
            f"{scratch * measured['xla'] / 1e6:,.0f}",
            f"{scratch * measured['xla'] / measured['peak'] - 1:+.0%}",
            f"{planned / 1e6:,.0f}",
            f"{planned / measured['peak'] - 1:+.0%}",
            f"{tokens:,.0f}",
            f"{speed.tokens_per_second:,.0f}",
            f"{speed.tokens_per_second / tokens - 1:+.0%}",
        ]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
        products = [(*product, times) for product, times in counts.products.items()]
        rows.append(
            measured
            | {"name": name, "kinds": kinds, "products": products, "touched": counts.touched}
            | {"operations": counts.operations, "tokens": job.batch_size * job.context}
        )
    if options.json:
        result = {"flops": device.flops["float32"], "bandwidth": device.bandwidth, "rows": rows}
        Path(options.json).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
