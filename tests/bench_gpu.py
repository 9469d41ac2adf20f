"""Every GPU figure of `gpt2_124m` by one command: speed, memory, PyTorch in turn, the three precisions' losses.

    python tests/bench_gpu.py [--rows 16] [--rounds 3] [--seconds 10] [--curve-steps 2000] [--tiny]

For each precision: tokens/s, model FLOPs utilization against the device's dense peak and against its own measured
product, the step against its floor, and peak memory beside what `plan` says. PyTorch: the same model from
`transformers` under torch.compile, bfloat16 autocast, its flash attention and fused AdamW, in turn with ours, which
then also trains with AdamW. Curves: the loss of the last 50 steps of the same small run in float32, bfloat16 and
float16. `--tiny` runs all of it in a minute on a CPU, to see that it works; its numbers mean nothing.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from zerotollm.host.gpu import prepare_gpu  # noqa: E402

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of it too
prepare_gpu()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.gpt2_124m import experiment as gpt2_124m  # noqa: E402
from tests.functions import init_state  # noqa: E402
from zerotollm.model.accelerator import this_accelerator  # noqa: E402
from zerotollm.model.config import resolve  # noqa: E402
from zerotollm.planning.device_benchmark import measure_this  # noqa: E402
from zerotollm.planning.device_table import TABLE  # noqa: E402
from zerotollm.planning.flops import train_flops  # noqa: E402
from zerotollm.planning.memory import memory_by_kind, planned_peak, xla_memory  # noqa: E402
from zerotollm.planning.speed import predict  # noqa: E402
from zerotollm.session.job import job_for  # noqa: E402
from zerotollm.training.config import OptimizerConfig  # noqa: E402

BATCHES = 4
CURVE_END = 50


def draw(job, seed=0):
    """A batch of tokens of which the next depends on the last, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    V = job.model.vocab_size
    uniform = rng.random((job.batch_size, job.context + 1))
    tokens = (V * uniform**3).astype(np.int32)
    repeats = rng.random(tokens.shape) < 0.5
    for t in range(1, tokens.shape[1]):
        tokens[:, t] = np.where(repeats[:, t], (tokens[:, t - 1] * 7 + 1) % V, tokens[:, t])
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segments": np.zeros_like(tokens[:, 1:]),
        "weights": np.ones(tokens[:, 1:].shape, np.float32),
    }


class Ours:
    """Our step, which keeps its state between rounds."""

    def __init__(self, job):
        self.job = job
        self.batches = [jax.device_put(draw(job, seed)) for seed in range(BATCHES)]
        make = partial(init_state, job.model, job.optimizer, job.train, compute=job.compute)
        self.state = jax.jit(make)()
        begun = time.perf_counter()
        self.compiled = job.step().lower(self.state, self.batches[0]).compile()
        self.compile_seconds = time.perf_counter() - begun
        self.run(0.0)

    def run(self, seconds):
        """Seconds a step, the device never waiting for the host."""
        steps, begun = 0, time.perf_counter()
        while steps < 3 or time.perf_counter() - begun < seconds:
            self.state, metrics = self.compiled(self.state, self.batches[steps % BATCHES])
            steps += 1
            if steps % 8 == 0:
                jax.block_until_ready(metrics)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - begun) / steps


class Torch:
    """PyTorch's step on the same shapes."""

    def __init__(self, job, compiles):
        import torch

        from zerotollm.interop import qwen3
        from zerotollm.interop.torch_model import torch_model

        self.torch, self.job = torch, job
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high")
        net = torch_model(qwen3.FAMILY, job.model).to(self.device)
        fused = {"fused": True} if self.device == "cuda" else {}
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, **fused)
        self.net = torch.compile(net) if compiles else net
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, job.model.vocab_size, (job.batch_size, job.context + 1))
        self.tokens = torch.from_numpy(tokens).to(self.device)
        self.run(0.0)

    def run(self, seconds):
        torch, steps, begun = self.torch, 0, time.perf_counter()
        while steps < 3 or time.perf_counter() - begun < seconds:
            self.optimizer.zero_grad(set_to_none=True)
            for part in self.tokens.split(self.job.micro_batch):
                with torch.autocast(self.device, torch.bfloat16):
                    logits = self.net(input_ids=part[:, :-1], use_cache=False).logits
                    nats = torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1).float(), part[:, 1:].flatten()
                    )
                (nats / self.job.train.micro_batches).backward()
            self.optimizer.step()
            steps += 1
        if self.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / steps


def peak_of_table():
    """Dense FLOP/s in 16 bits of this card by its maker's sheet; None where the table has not got it."""
    kind = this_accelerator().kind.lower().replace(" ", "")
    return next((d.flops["bfloat16"] for name, d in TABLE.items() if name in kind), None)


def figures(name, job, device, rounds, seconds):
    """What is printed of one precision."""
    ours = Ours(job)
    step = statistics.median(ours.run(seconds) for _ in range(rounds))
    tokens = job.batch_size * job.context
    flops, peak = train_flops(job.model, job.context) * tokens, peak_of_table()
    speed, memory = predict(job, device), jax.devices()[0].memory_stats() or {}
    return {
        "what": name,
        "compute": job.compute.precision + ", attention " + job.resolved_compute().attention,
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "predicted_tokens_per_second": speed.tokens_per_second,
        "mfu_of_table": flops / step / peak if peak else None,
        "mfu_of_measured": flops / step / device.flops[job.resolved_compute().precision],
        "floor_seconds": speed.floor,
        "compile_seconds": ours.compile_seconds,
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "xla_bytes": planned_peak(xla_memory(ours.compiled)),
        "by_kind_bytes": sum(memory_by_kind(job).values()),
    }


def curve(job, steps):
    """Mean loss of the last steps."""
    make = partial(init_state, job.model, job.optimizer, job.train, compute=job.compute)
    state, step, losses = jax.jit(make)(), job.step(), []
    for i in range(steps):
        state, metrics = step(state, draw(job, i))
        losses.append(metrics["loss"])
    return float(np.mean([float(loss) for loss in losses[-CURVE_END:]]))


def with_precision(job, precision):
    """Attention is chosen anew: cuDNN's is for half precision only."""
    return replace(job, compute=replace(job.compute, precision=precision, attention="auto"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--curve-steps", type=int, default=2000)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    experiment = gpt2_124m()
    experiment = replace(
        experiment,
        data=replace(experiment.data, batch_size=options.rows),
        train=replace(experiment.train, micro_batches=1, steps=options.curve_steps),
    )
    if options.tiny:
        experiment = replace(
            experiment,
            data=replace(experiment.data, context=32, batch_size=2),
            model=replace(experiment.model, num_layers=1, width=64, num_heads=2),
            tokenizer=replace(experiment.tokenizer, vocab_size=512),
        )
        options.rounds, options.seconds, options.curve_steps = 1, 0.1, 60
    job = job_for(experiment, this_accelerator())
    say = lambda **line: print(json.dumps(line), flush=True)  # noqa: E731
    say(device=this_accelerator().kind, jax=jax.__version__, peak=peak_of_table())
    for precision in ("bfloat16", "float16", "float32"):
        device = measure_this(precision)
        result = figures(precision, with_precision(job, precision), device, options.rounds, options.seconds)
        say(**result, measured_flops=device.flops[precision], measured_bandwidth=device.bandwidth)

    adamw = replace(
        with_precision(job, "bfloat16"), optimizer=OptimizerConfig(kind="adamw", learning_rate=1e-4)
    )
    ours, theirs = Ours(adamw), Torch(adamw, compiles=not options.tiny)
    pairs = [(ours.run(options.seconds), theirs.run(options.seconds)) for _ in range(options.rounds)]
    tokens = job.batch_size * job.context
    say(
        what="adamw in turn with torch",
        ours=statistics.median(tokens / a for a, _ in pairs),
        torch=statistics.median(tokens / b for _, b in pairs),
        ratio=statistics.median(b / a for a, b in pairs),
        ratios=[b / a for a, b in pairs],
    )
    del ours, theirs

    size = {"num_layers": 4, "width": 256, "num_heads": 4, "num_kv_heads": 4}
    if options.tiny:
        size = {"num_layers": 1, "width": 64, "num_heads": 2, "num_kv_heads": 2}
    derived = {"ff_width": 0, "head_width": 0, "key_width": 0}
    small = replace(
        job,
        model=resolve(
            replace(job.model, **size, **derived), vocab_size=job.model.vocab_size, context=job.context
        ),
        train=replace(job.train, steps=options.curve_steps),
        batch_size=min(8, job.batch_size),
    )
    losses = {
        p: curve(with_precision(small, p), options.curve_steps) for p in ("float32", "bfloat16", "float16")
    }
    say(what=f"loss after {options.curve_steps} steps, mean of the last {CURVE_END}", **losses)


if __name__ == "__main__":
    main()
