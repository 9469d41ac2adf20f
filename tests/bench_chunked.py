"""Chunked attention and cross-entropy against plain ones: temporary memory of the compiled step, and its time.

    python tests/bench_chunked.py [--rounds 5]

Steps of both run in turn in one process; the ratio of times is the median over rounds. The last lines are a context
of 8,192: what XLA plans for either, and a step of the chunked one that really ran. With --rounds 0 nothing runs: only
what XLA plans is shown.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from zerotollm.host.allocator import keep_freed_memory  # noqa: E402

keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from tests.functions import init_state  # noqa: E402
from zerotollm.model.compute_config import ComputeConfig  # noqa: E402
from zerotollm.model.config import TransformerConfig, resolve  # noqa: E402
from zerotollm.planning.memory import Job, planned_peak, xla_memory  # noqa: E402
from zerotollm.training.config import OptimizerConfig, TrainConfig  # noqa: E402

KINDS = {
    "plain": {"attention": "plain", "cross_entropy": "plain"},
    "chunked loss": {"attention": "plain", "cross_entropy": "chunked"},
    "chunked attention": {"attention": "chunked", "cross_entropy": "plain"},
    "both chunked": {"attention": "chunked", "cross_entropy": "chunked"},
}


def job(kind, *, layers, width, heads, context, rows, vocab):
    model = TransformerConfig(num_layers=layers, width=width, num_heads=heads)
    return Job(
        resolve(model, vocab_size=vocab, context=context),
        OptimizerConfig(kind="adamw", learning_rate=1e-3),
        TrainConfig(),
        ComputeConfig(**KINDS[kind]),
        rows,
        context,
    )


def compiled(job):
    return job.step().lower(job.state(), job.batch()).compile()


class Side:
    """A step and its state."""

    def __init__(self, job, program):
        draw = np.random.default_rng(0)
        tokens = draw.integers(0, job.model.vocab_size, (job.batch_size, job.context + 1)).astype(np.int32)
        ones = np.ones(tokens[:, 1:].shape, np.float32)
        segments = np.zeros(ones.shape, np.int32)
        self.batch = jax.device_put(
            {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "segments": segments, "weights": ones}
        )
        self.program = program
        self.state = jax.jit(lambda: init_state(job.model, job.optimizer, job.train, compute=job.compute))()
        self.step()

    def step(self):
        """Seconds and loss."""
        begun = time.perf_counter()
        self.state, metrics = self.program(self.state, self.batch)
        loss = float(metrics["loss"])
        return time.perf_counter() - begun, loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shape = {"layers": 2, "width": 256, "heads": 4, "context": 1024, "rows": 4, "vocab": 32768}
    print(shape)
    sides, temporary = {}, {}
    for kind in KINDS:
        one = job(kind, **shape)
        program = compiled(one)
        temporary[kind] = xla_memory(program)["temporary"]
        if options.rounds:
            sides[kind] = Side(one, program)
        else:
            ratio = temporary["plain"] / temporary[kind]
            print(
                f"{kind}: temporary memory {temporary[kind] / 1e6:,.0f} MB, 1 / {ratio:.2f} of plain",
                flush=True,
            )
    rounds = [{kind: side.step() for kind, side in sides.items()} for _ in range(options.rounds)]
    if options.rounds:
        show(rounds, temporary)
    sides.clear()
    long = {"layers": 4, "width": 512, "heads": 8, "context": 8192, "rows": 1, "vocab": 32768}
    print(long)
    for kind in ("plain", "both chunked"):
        one = job(kind, **long)
        if kind != "plain":
            one = replace(one, compute=replace(one.compute, remat="dots"))
        program = compiled(one)
        print(f"{kind}: XLA plans {planned_peak(xla_memory(program)) / 1e9:.2f} GB", flush=True)
    if options.rounds:
        seconds, loss = Side(one, program).step()
        print(f"a chunked step took {seconds:.1f} s, loss {loss:.4f}")


def show(rounds, temporary):
    """The table of the shorter context."""
    print("| step | temporary memory | of plain | seconds | of plain | first loss |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        ratio = statistics.median(r[kind][0] / r["plain"][0] for r in rounds)
        print(
            f"| {kind} | {temporary[kind] / 1e6:,.0f} MB | 1 / {temporary['plain'] / temporary[kind]:.2f} "
            f"| {statistics.median(r[kind][0] for r in rounds):.3f} | {ratio:.2f} x | {rounds[0][kind][1]:.5f} |"
        )


if __name__ == "__main__":
    main()
