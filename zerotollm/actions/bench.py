"""bench: measure how fast an experiment trains and writes, and in how much memory, alone or against PyTorch."""

import json
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from zerotollm import run_directory
from zerotollm.actions.config import BenchOptions
from zerotollm.console import Console
from zerotollm.errors import UsageError
from zerotollm.experiment import Experiment, continues
from zerotollm.host.atomic_files import write_atomically
from zerotollm.host.cores import is_busy, load_average, usable_cores
from zerotollm.interop import marian
from zerotollm.interop.family import check
from zerotollm.interop.torch_model import check_installed, decoder_family
from zerotollm.session.bench_report import Result, Round, bench_table, our_result, torch_result
from zerotollm.session.progress import clock
from zerotollm.session.timed_jax import jax_side
from zerotollm.session.timed_sides import Ask, side_process, text_measurements
from zerotollm.session.timed_torch import torch_side


def bench(experiment: Experiment, run_dir: Path, options: BenchOptions) -> Result:
    """Measure fresh parameters on random tokens, show a table, write `bench.json` in `run_dir` and return it.

    The directory needs no run, and its run is not changed. Ours and PyTorch's side each have a process, which idles
    while the other is measured. Measurements alternate, so that a slower machine slows both; a ratio is the median
    over the rounds. Against PyTorch both sides train without dropout. With an encoder, training alone is measured,
    per target token and with sources as long; PyTorch's model is Marian, and ours takes its biases and positions.
    Raises UsageError where the options are out of range or the experiment has no twin, RunError where a side fails.
    """
    if options.rounds < 1 or not options.seconds > 0:
        raise UsageError(
            f"rounds is {options.rounds} and seconds {options.seconds}: take at least 1 round, and above 0 seconds"
        )
    if options.against == "torch":
        experiment = _with_twin(experiment)
    console = Console()
    load, cores = load_average(), usable_cores()
    if is_busy(load, cores):
        console.print(f"this machine is busy (load {load:.1f} on {cores} cores): rates will be too low")
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{clock(time.monotonic() - began)} {text}")

    with ExitStack() as stack:
        say("preparing data and compiling; on a GPU that can take minutes")
        side = partial(jax_side, shared=True) if options.against == "torch" else jax_side
        facts, ask = stack.enter_context(side_process("jax", side, experiment))
        sides, torch_facts = {"ours": ask}, None
        if options.against == "torch":
            say("compiling PyTorch's side")
            arguments = (experiment, facts["model"], facts["platform"], facts["precision"], cores)
            torch_facts, sides["torch"] = stack.enter_context(side_process("PyTorch", torch_side, *arguments))
        rounds: list[Round] = []
        for number in range(1, options.rounds + 1):
            say(f"measuring, round {number} of {options.rounds}")
            rounds.append(_measure_round(sides, options.seconds, text_measurements(experiment)))
    result = {
        "options": asdict(options),
        "load_average": load or 0.0,
        "experiment": asdict(experiment),
        **our_result(experiment, facts, rounds),
    }
    if torch_facts:
        result["torch"] = torch_result(experiment, torch_facts, rounds)
    write_atomically(run_dir / run_directory.BENCH, json.dumps(result, indent=2) + "\n")
    console.print(bench_table(experiment, result))
    return result


def _with_twin(experiment: Experiment) -> Experiment:
    """Return the experiment as PyTorch's side trains it too. Raises UsageError where PyTorch has no such model."""
    train, model = experiment.train, experiment.model
    if train.objective == "label" or train.trainable or train.lora_rank or experiment.code.functions:
        raise UsageError(
            "PyTorch's side trains all parameters of a built-in model to predict tokens, and this experiment labels "
            "texts, trains some parameters alone, or brings functions of its own: leave --against out"
        )
    if not continues(experiment):
        model = marian.nearest(model)
        check(marian.FAMILY, model)
    else:
        check(decoder_family(model), replace(model, token_shift=0))  # the twin gets a token shift
    check_installed()
    return replace(experiment, model=replace(model, dropout=0.0))


def _measure_round(sides: dict[str, Ask], seconds: float, texts: Iterable[str]) -> Round:
    """Take every measurement once, the sides in turn."""
    names = ["train", *texts]
    times = {(side, name): ask(name, seconds) for name in names for side, ask in sides.items()}
    return times | {("ours", "product"): sides["ours"]("product", seconds / 4)}
