"""The matrix products of an experiment's train step, one by one, in JAX and in PyTorch.

    python tests/bench_products.py [EXPERIMENT] [--seconds 0.5] [--rounds 3]

The shapes are those of the program that XLA compiled. Each product runs alone, on the same cores and in turn, with
operands laid out as in the program: in PyTorch a transposed operand is a view. Rates are GFLOP/s, the median over the
rounds; "times" is how often the step has it. Needs torch.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from zerotollm.catalog import load, names  # noqa: E402
from zerotollm.host.cores import usable_cores  # noqa: E402
from zerotollm.planning.hlo import operations  # noqa: E402
from zerotollm.session.timed_jax import jax_side  # noqa: E402


def in_jax(product, left, right):
    """Return a function that computes the product once."""
    axes = (product.contracted, product.batched)
    multiply = jax.jit(lambda a, b: jax.lax.dot_general(a, b, axes))
    a, b = jnp.asarray(left), jnp.asarray(right)
    return lambda: multiply(a, b).block_until_ready()


def in_torch(product, left, right):
    """Return a function that computes the product once."""
    (contract_left, contract_right), (batch_left, batch_right) = product.contracted, product.batched
    free_left = [i for i in range(left.ndim) if i not in (*contract_left, *batch_left)]
    free_right = [i for i in range(right.ndim) if i not in (*contract_right, *batch_right)]
    a = torch.from_numpy(left).permute(*batch_left, *free_left, *contract_left)
    b = torch.from_numpy(right).permute(*batch_right, *contract_right, *free_right)
    if len(free_left) > 1 or len(free_right) > 1 or len(contract_left) > 1:
        raise ValueError(f"not a product of matrices: {product}")
    if len(batch_left) > 1:
        a, b = a.flatten(0, len(batch_left) - 1), b.flatten(0, len(batch_left) - 1)
    return lambda: torch.matmul(a, b)


def gflops(call, flops, seconds):
    """Return the rate of the fastest of many calls."""
    call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return flops / min(times) / 1e9


def main():
    """Print a row for each product, and the time of all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", default="base", choices=names(ROOT / "experiments"))
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    facts, _ = jax_side(load(ROOT / "experiments", options.experiment), decodes=False)
    counts = Counter(p for operation in operations(facts["program"]).values() for p in operation.products)
    rng, rows = np.random.default_rng(0), []
    print(f"{'product':>26} {'times':>6} {'JAX':>8} {'PyTorch':>8} {'ratio':>6}")
    for product, times in sorted(counts.items(), key=lambda item: -item[0].flops * item[1]):
        left, right = (
            rng.standard_normal(shape, dtype=np.float32) for shape in (product.left, product.right)
        )
        calls = in_jax(product, left, right), in_torch(product, left, right)
        rates = [
            [gflops(call, product.flops, options.seconds / options.rounds) for call in calls]
            for _ in range(options.rounds)
        ]
        ours, theirs = (statistics.median(side) for side in zip(*rates, strict=True))
        rows.append(
            {"product": str(product), "times": times, "flops": product.flops, "jax": ours, "torch": theirs}
        )
        print(f"{product!s:>26} {times:6} {ours:8.1f} {theirs:8.1f} {ours / theirs:6.2f}", flush=True)
    total = {
        side: sum(row["times"] * row["flops"] / row[side] / 1e9 for row in rows) for side in ("jax", "torch")
    }
    print(
        f"all products of a step: JAX {total['jax'] * 1e3:.1f} ms, PyTorch {total['torch'] * 1e3:.1f} ms, "
        f"on {usable_cores()} cores"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"cores": usable_cores(), "rows": rows, "seconds": total}, indent=2)
        )


if __name__ == "__main__":
    main()
