"""What `bench` makes of the times of its rounds: rates and ratios for bench.json, and a table."""

from collections.abc import Sequence
from statistics import median

from rich.table import Table

from zerotollm.experiment import Experiment
from zerotollm.session.progress import two_columns
from zerotollm.session.timed_jax import JaxFacts
from zerotollm.session.timed_sides import text_measurements
from zerotollm.session.timed_torch import TorchFacts
from zerotollm.types import Json

Round = dict[tuple[str, str], list[float]]
"""(side, measurement) -> seconds of each step or text"""
Result = Json
"""A part of bench.json."""


def _rates(experiment: Experiment, rounds: Sequence[Round], side: str) -> dict[str, list[float]]:
    """Return tokens per second of the median step or text in each round, by measurement."""
    data = experiment.data
    tokens = {"train": data.batch_size * data.context}
    # Of prefill the tokens read count, of which one text alone is short.
    for name, texts in text_measurements(experiment).items():
        tokens[name] = texts.rows * max(texts.prompt, texts.new)
    return {name: [number / median(r[side, name]) for r in rounds] for name, number in tokens.items()}


def our_result(experiment: Experiment, facts: JaxFacts, rounds: Sequence[Round]) -> Result:
    """Return our part: seconds, bytes, tokens/s and FLOP/s.

    `flops_utilization` is the share of `peak_flops_per_second` that the matrix products of training reach (MFU,
    arXiv:2204.02311, appendix B). The peak is the fastest of many products of large square matrices in the `precision`
    of training.
    """
    steps = sorted(seconds for r in rounds for seconds in r["ours", "train"])
    p10, p90 = (steps[round(share * (len(steps) - 1))] for share in (0.1, 0.9))
    rates = {name: median(values) for name, values in _rates(experiment, rounds, "ours").items()}
    peak = 2 * facts["product"] ** 3 / min(seconds for r in rounds for seconds in r["ours", "product"])
    return {
        "environment": facts["environment"],
        "parameters": facts["parameters"],
        "precision": facts["precision"],
        "product": facts["product"],
        "compile_seconds": facts["compile_seconds"],
        "step_seconds": {"p10": p10, "median": median(steps), "p90": p90},
        "tokens_per_second": rates,
        "flops_per_token": facts["flops_per_token"],
        "peak_flops_per_second": peak,
        "flops_utilization": facts["flops_per_token"] * rates["train"] / peak,
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "xla_memory_bytes": facts["xla_memory_bytes"],
    }


def torch_result(experiment: Experiment, facts: TorchFacts, rounds: Sequence[Round]) -> Result:
    """Return PyTorch's part; `ratio` is our tokens/s over PyTorch's, over the rounds."""
    ours, theirs = (_rates(experiment, rounds, side) for side in ("ours", "torch"))
    ratios = {name: [a / b for a, b in zip(ours[name], theirs[name], strict=True)] for name in ours}
    return {
        **facts,
        "tokens_per_second": {name: median(values) for name, values in theirs.items()},
        "ratio": {
            name: {"lowest": min(values), "median": median(values), "highest": max(values)}
            for name, values in ratios.items()
        },
    }


def bench_table(experiment: Experiment, result: Result) -> Table:
    """Return bench.json as a table for a terminal."""
    data, step, planned = experiment.data, result["step_seconds"], result["xla_memory_bytes"]
    torch: Result = result.get("torch", {})

    def rate(name: str) -> str:
        text = f"{result['tokens_per_second'][name]:,.0f} tokens/s"
        if torch:
            ratio = torch["ratio"][name]
            text += (
                f"; PyTorch {torch['tokens_per_second'][name]:,.0f}: {ratio['median']:.2f} x "
                f"({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
            )
        return text

    rows = {
        "parameters": f"{result['parameters']:,}",
        "compilation": f"{result['compile_seconds']:.1f} s, of the train step, without a cache",
        "train step": f"{step['median'] * 1e3:.1f} ms ({step['p10'] * 1e3:.1f} to {step['p90'] * 1e3:.1f}, 8 in 10 "
        f"steps), {data.batch_size} windows of {data.context}",
        "training": rate("train") + (f", {torch['optimizer']}" if torch else ""),
        "utilization": f"{result['flops_utilization']:.0%} of {result['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"a product of {result['product']} x {result['product']} in {result['precision']}",
        "peak memory": f"{result['peak_memory_bytes'] / 1e9:.2f} GB"
        + (f"; PyTorch {torch['peak_memory_bytes'] / 1e9:.2f} GB" if torch else ""),
    }
    if planned:
        rows["planned by XLA"] = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in planned.items())
    for name, texts in text_measurements(experiment).items():
        if name == "prefill":
            rows["reading a prompt"] = f"{rate(name)}, {texts.prompt} tokens"
        else:
            noun = "text" if texts.rows == 1 else "texts"
            rows[f"writing {texts.rows} {noun}"] = f"{rate(name)}, {texts.new} tokens each"
    return two_columns(rows)
