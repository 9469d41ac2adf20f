"""bench: how fast an experiment trains and writes, and in how much memory, by itself or against PyTorch."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from zerotollm import run_directory
from zerotollm.actions.config import BenchOptions
from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.atomic_files import write_atomically
from zerotollm.interop import marian
from zerotollm.interop.qwen3 import check_installed, check_twin
from zerotollm.session.devices import usable_cores
from zerotollm.session.progress import clock
from zerotollm.session.timed_sides import (
    decode_lengths,
    decode_rows,
    ours,
    serve,
    torch_twin,
    translates,
)

BUSY = 0.25
"""Load average over cores from which on the machine is called busy."""

Ask = Callable[[str, float], list[float]]


def bench(experiment: Experiment, run_dir: Path, options: BenchOptions) -> dict[str, Any]:
    """Measures with fresh parameters and random tokens, shows a table and writes `bench.json` in `run_dir`.

    No run is needed, and one that is there is left alone. Each side, ours and PyTorch, has a process of its own
    that idles while the other is measured; measurements alternate, so that a machine that slows down slows both,
    and a ratio is the median of those of the rounds. Against PyTorch both sides train without dropout. Of a model
    with an encoder training alone is measured, against PyTorch with Marian's biases and layout of positions on both
    sides; tokens are those of targets, with sources as long. Returns what the file holds; see `_result`. Raises
    UsageError where the options are out of range or the experiment has no twin, RunError where a side fails.
    """
    if options.rounds < 1 or not options.seconds > 0:
        raise UsageError(
            f"rounds is {options.rounds} and seconds {options.seconds}: take at least 1 round, and above 0 seconds"
        )
    against_torch = options.against == "torch"
    if against_torch:
        train = experiment.train
        if train.objective == "label" or train.trainable or train.lora_rank:
            raise UsageError(
                "PyTorch's side trains all parameters to predict tokens, and this experiment labels, or trains a part: "
                "leave --against out"
            )
        if translates(experiment):
            experiment = replace(experiment, model=marian.nearest(experiment.model))
            marian.check_twin(experiment.model)
        else:
            check_twin(replace(experiment.model, token_shift=0))  # the twin is given a shift
        check_installed()
        without_dropout = replace(experiment.model, dropout=0.0)  # the twin has none to pay for
        experiment = replace(experiment, model=without_dropout)
    # Imported here: nobody should wait to hear that an option is out of range.
    from zerotollm.console import Console

    console = Console()
    load, cores = os.getloadavg()[0], usable_cores()
    if load > BUSY * cores:
        console.print(
            f"this machine is busy (load {load:.1f} on {cores} cores): figures will be too low",
            highlight=False,
        )
    begun = time.monotonic()

    def say(what: str) -> None:
        console.print(f"{clock(time.monotonic() - begun)} {what}", highlight=False)

    with ExitStack() as stack:
        say("preparing data and compiling; on a GPU that can take minutes")
        side = partial(ours, shared=True) if against_torch else ours
        facts, ask = stack.enter_context(_side("jax", side, experiment))
        sides = {"ours": ask}
        theirs = None
        if against_torch:
            say("compiling PyTorch's side")
            arguments = (experiment, facts["model"], facts["platform"], facts["precision"])
            theirs, sides["torch"] = stack.enter_context(_side("PyTorch", torch_twin, *arguments))
        rounds = []
        for number in range(1, options.rounds + 1):
            say(f"measuring, round {number} of {options.rounds}")
            rounds.append(_round(sides, options.seconds, decode_rows(experiment)))
    result = {
        "options": asdict(options),
        "load_average": load,
        "experiment": asdict(experiment),
        **_result(experiment, facts, rounds),
    }
    if theirs:
        result["torch"] = _against(experiment, theirs, rounds)
    write_atomically(run_dir / run_directory.BENCH, json.dumps(result, indent=2) + "\n")
    console.print(_table(experiment, result), highlight=False)
    return result


@contextmanager
def _side(name: str, side: Callable[..., Any], *arguments: Any) -> Iterator[tuple[dict[str, Any], Ask]]:
    """The facts of a side that runs in a new process, and the function that asks it for a measurement."""
    context = multiprocessing.get_context("spawn")  # a fork would take along whatever jax this process has
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, side, *arguments), daemon=True)
    process.start()
    there.close()

    def answer() -> Any:
        try:
            got = here.recv()
        except EOFError:
            raise RunError(f"the process that measures {name} died; what it said stands above") from None
        if isinstance(got, UsageError | RunError):
            raise got
        return got

    def ask(measurement: str, seconds: float) -> list[float]:
        here.send((measurement, seconds))
        return answer()

    try:
        yield answer(), ask
    finally:
        process.terminate()
        process.join()
        here.close()


def _round(
    sides: dict[str, Ask], seconds: float, rows_at_once: tuple[int, ...]
) -> dict[tuple[str, str], list[float]]:
    """Every measurement once, the sides in turn: (side, measurement) to seconds of each step or text."""
    names = ["train", *(f"decode {rows}" for rows in rows_at_once)]
    taken = {(side, name): ask(name, seconds) for name in names for side, ask in sides.items()}
    return taken | {("ours", "product"): sides["ours"]("product", seconds / 4)}


def _rates(experiment: Experiment, rounds: list[Any], side: str) -> dict[str, list[float]]:
    """Tokens per second in each round, by measurement: of the median step or text."""
    shape = experiment.data
    _, new = decode_lengths(shape.context)
    tokens = {"train": shape.batch_size * shape.context} | {
        f"decode {rows}": rows * new for rows in decode_rows(experiment)
    }
    return {name: [number / median(r[side, name]) for r in rounds] for name, number in tokens.items()}


def _result(experiment: Experiment, facts: dict[str, Any], rounds: list[Any]) -> dict[str, Any]:
    """What `bench.json` holds of our side: seconds, bytes, tokens/s and FLOP/s.

    `flops_utilization` is the share of `peak_flops_per_second`, the fastest of many products of large square
    matrices in the `precision` of training, that training's matrix products get (MFU, arXiv:2204.02311, appendix B).
    """
    steps = [seconds for r in rounds for seconds in r["ours", "train"]]
    rates = {name: median(values) for name, values in _rates(experiment, rounds, "ours").items()}
    peak = 2 * facts["product"] ** 3 / min(seconds for r in rounds for seconds in r["ours", "product"])
    flops = facts["flops_per_token"]
    return {
        "environment": facts["environment"],
        "parameters": facts["parameters"],
        "precision": facts["precision"],
        "product": facts["product"],
        "compile_seconds": facts["compile_seconds"],
        "step_seconds": dict(zip(("p10", "median", "p90"), _spread(steps), strict=True)),
        "tokens_per_second": rates,
        "flops_per_token": flops,
        "peak_flops_per_second": peak,
        "flops_utilization": flops * rates["train"] / peak,
        "peak_memory_bytes": facts["peak_memory_bytes"],
        "xla_memory_bytes": facts["xla_memory_bytes"],
    }


def _against(experiment: Experiment, facts: dict[str, Any], rounds: list[Any]) -> dict[str, Any]:
    """What it holds of the other side; `ratio` is our tokens/s over theirs, of the rounds one by one."""
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


def _spread(values: list[float]) -> tuple[float, float, float]:
    """The 10th percentile, the median and the 90th."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(0.1 * last)], median(ordered), ordered[round(0.9 * last)]


def _table(experiment: Experiment, result: dict[str, Any]) -> Any:
    """The result as people read it."""
    from rich.table import Table

    shape, step, planned = experiment.data, result["step_seconds"], result["xla_memory_bytes"]
    theirs = result.get("torch")
    _, new = decode_lengths(shape.context)

    def rate(name: str) -> str:
        text = f"{result['tokens_per_second'][name]:,.0f} tokens/s"
        if theirs:
            ratio = theirs["ratio"][name]
            text += (
                f"; PyTorch {theirs['tokens_per_second'][name]:,.0f}: {ratio['median']:.2f} x "
                f"({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
            )
        return text

    memory = f"{result['peak_memory_bytes'] / 1e9:.2f} GB"
    if theirs:
        memory += f"; PyTorch {theirs['peak_memory_bytes'] / 1e9:.2f} GB"
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("parameters", f"{result['parameters']:,}")
    table.add_row("compilation", f"{result['compile_seconds']:.1f} s, of the train step, without a cache")
    table.add_row(
        "train step",
        f"{step['median'] * 1e3:.1f} ms ({step['p10'] * 1e3:.1f} to {step['p90'] * 1e3:.1f}, 8 in 10 steps), "
        f"{shape.batch_size} windows of {shape.context}",
    )
    optimizer = f", {theirs['optimizer']}" if theirs else ""
    table.add_row("training", rate("train") + optimizer)
    table.add_row(
        "utilization",
        f"{result['flops_utilization']:.0%} of {result['peak_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"a product of {result['product']} x {result['product']} in {result['precision']}",
    )
    table.add_row("peak memory", memory)
    if planned:
        sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in planned.items())
        table.add_row("planned by XLA", sizes)
    for rows in decode_rows(experiment):
        at_once = "1 text" if rows == 1 else f"{rows} texts"
        table.add_row(f"writing {at_once}", f"{rate(f'decode {rows}')}, {new} tokens each")
    return table
