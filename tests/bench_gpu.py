"""Every GPU figure by one command: speed, memory, attention, XLA's options, PyTorch in turn, the longest operations.

    python tests/bench_gpu.py [--minutes 9] [--rows 16] [--out bench_gpu.jsonl] [--only SECTION ...] [--tiny]

Sections run in the order of `SECTIONS`, each in a process of its own that is ended when its time is over, and each
figure is appended to the file as soon as it is measured: a run that is cut keeps what it has. `--tiny` runs all of it
in some minutes on a CPU, to see that it works; its numbers mean nothing.

The model is `gpt2_124m`, context 1,024, without accumulation of gradients, on random tokens, unless a section says
otherwise. PyTorch has the same model from `transformers`, torch.compile, autocast, its flash attention and fused AdamW.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments.gpt2_124m import experiment as gpt2_124m  # noqa: E402
from experiments.vaswani_base import experiment as vaswani_base  # noqa: E402
from zerotollm.model.config import resolve  # noqa: E402
from zerotollm.training.config import OptimizerConfig  # noqa: E402

PRECISIONS = ("bfloat16", "float16", "float32")
ATTENTION = ("cudnn", "chunked", "plain")
XLA_OPTIONS = {
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
    "no Triton products": {"xla_gpu_enable_triton_gemm": False},
    "latency hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "autotune level 0": {"xla_gpu_autotune_level": "0"},
    "autotune level 2": {"xla_gpu_autotune_level": "2"},
}
SECTIONS = {
    "precisions": 120,
    "torch": 120,
    "attention": 120,
    "operations": 60,
    "encoder_decoder": 120,
    "options": 240,
    "curves": 120,
}
"""Most seconds of each."""
CURVE_END = 50


def base(options):
    """Return `gpt2_124m` for one device, with its vocabulary, so that no text is needed."""
    experiment = gpt2_124m()
    context, model, V = 1024, experiment.model, experiment.tokenizer.vocab_size
    if options.tiny:
        context, V = 32, 512
        model = replace(model, num_layers=1, width=64, num_heads=2)
    data = replace(experiment.data, context=context, batch_size=2 if options.tiny else options.rows)
    return replace(
        experiment,
        data=data,
        model=resolve(model, vocab_size=V, context=context),
        train=replace(experiment.train, micro_batches=1),
    )


def computed_with(experiment, **fields):
    """Return the experiment with these fields of `compute`."""
    return replace(experiment, compute=replace(experiment.compute, **fields))


def with_adamw(experiment):
    """Return the experiment with the optimizer that PyTorch has too."""
    return replace(experiment, optimizer=OptimizerConfig(kind="adamw", learning_rate=1e-4))


def trained(experiment, options, **how):
    """Return the figures of training alone."""
    from zerotollm.session.timed_jax import jax_side

    facts, measurements = jax_side(experiment, decodes=False, shared=True, **how)
    steps = [time for _ in range(options.rounds) for time in measurements["train"](options.seconds)]
    step = statistics.median(steps)
    tokens = experiment.data.batch_size * experiment.data.context
    product = 2 * facts["product"] ** 3 / min(measurements["product"](options.seconds / 4))
    rate = facts["flops_per_token"] * tokens / step
    return {
        "precision": facts["precision"],
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "mfu_of_table": rate / peak_of_table() if peak_of_table() else None,
        "mfu_of_product": rate / product,
        "product_flops": product,
        "compile_seconds": facts["compile_seconds"],
        "peak_bytes": facts["peak_memory_bytes"],
        "xla_bytes": facts["xla_memory_bytes"],
    }


def peak_of_table():
    """Return dense FLOP/s in 16 bits of this card by its maker's sheet; None where the table has not got it."""
    from zerotollm.model.accelerator import this_accelerator
    from zerotollm.planning.device_table import TABLE

    kind = this_accelerator().kind.lower().replace(" ", "")
    return next((d.flops["bfloat16"] for name, d in TABLE.items() if name in kind), None)


def precisions(options, say):
    """Each precision, beside what `plan` predicts of speed and memory; then Muon's share of a step."""
    from zerotollm.model.accelerator import this_accelerator
    from zerotollm.planning.device_benchmark import measure_this
    from zerotollm.planning.memory import memory_by_kind
    from zerotollm.planning.speed import predict
    from zerotollm.session.job import job_for

    steps = {}
    for precision in PRECISIONS:
        experiment = computed_with(base(options), precision=precision)
        job, device = job_for(experiment, this_accelerator()), measure_this(precision)
        speed = predict(job, device)
        figures = trained(experiment, options)
        steps[precision] = figures["step_seconds"]
        say(
            what=precision,
            attention=job.resolved_compute().attention,
            **figures,
            predicted_tokens_per_second=speed.tokens_per_second,
            floor_seconds=speed.floor,
            by_kind_bytes=sum(memory_by_kind(job).values()),
            bandwidth=device.bandwidth,
        )
    adamw = trained(with_adamw(computed_with(base(options), precision="bfloat16")), options)
    muon = 1 - adamw["step_seconds"] / steps["bfloat16"]
    say(what="bfloat16 with AdamW", **adamw, share_of_muon=muon)


def in_turn(experiment, options, say, what, texts):
    """Both sides in turn: training, and writing texts."""
    from zerotollm.session.timed_jax import jax_side
    from zerotollm.session.timed_sides import side_process
    from zerotollm.session.timed_torch import torch_side

    with ExitStack() as stack:
        side = partial(jax_side, shared=True)
        facts, ours = stack.enter_context(side_process("jax", side, experiment))
        arguments = (experiment, facts["model"], facts["platform"], facts["precision"], os.cpu_count() or 1)
        torch_facts, theirs = stack.enter_context(side_process("PyTorch", torch_side, *arguments))
        compiled = facts["compile_seconds"]
        for name in ("train", *texts):
            pairs = [
                [statistics.median(ask(name, options.seconds)) for ask in (ours, theirs)]
                for _ in range(options.rounds)
            ]
            say(
                what=f"{what}, {name}",
                precision=facts["precision"],
                seconds=[statistics.median(side) for side in zip(*pairs, strict=True)],
                ratios=[b / a for a, b in pairs],
                compile_seconds=compiled,
                peak_bytes=[facts["peak_memory_bytes"], torch_facts["peak_memory_bytes"]],
            )


def torch(options, say):
    """AdamW on both sides; 1, 16 and 64 texts; a long prompt."""
    from zerotollm.session.timed_sides import text_measurements

    experiment = with_adamw(base(options))
    experiment = replace(experiment, model=replace(experiment.model, dropout=0.0))
    in_turn(experiment, options, say, "PyTorch in turn", text_measurements(experiment))


def attention(options, say):
    """Each kind of attention."""
    for kind in ATTENTION:
        attempt(say, f"attention {kind}", options, computed_with(base(options), attention=kind))


def xla_options(options, say):
    """XLA's options, one by one, beside none."""
    attempt(say, "XLA as it comes", options, base(options))
    for name, values in XLA_OPTIONS.items():
        attempt(say, name, options, base(options), compiler_options=values)


def attempt(say, what, options, experiment, **how):
    """Say the figures, or why there are none."""
    try:
        say(what=what, **trained(experiment, options, **how))
    except Exception as error:  # noqa: BLE001  the other settings are measured all the same
        say(what=what, error=" ".join(str(error).split())[:300])


def longest_operations(options, say):
    """Time by part of the model and the longest operations, from a trace."""
    from zerotollm.actions.config import ProfileOptions
    from zerotollm.actions.profile import profile

    with tempfile.TemporaryDirectory() as folder:
        result = profile(base(options), Path(folder), ProfileOptions(seconds=options.seconds / 2))
    parts = {name: part._asdict() for name, part in result["parts"].items()}
    say(what="operations", busy=result["busy"], longest_pause=result["longest_pause"], parts=parts)


def encoder_decoder(options, say):
    """`vaswani_base` in turn with PyTorch's Marian, in the precision of the GPU and without dropout."""
    from zerotollm.interop import marian

    experiment = vaswani_base()
    context, V, model = 256, experiment.tokenizer.vocab_size, marian.nearest(experiment.model)
    if options.tiny:
        context, V = 16, 512
        model = replace(model, num_layers=1, encoder_layers=1, width=64, num_heads=2, ff_width=128)
    experiment = replace(
        experiment,
        data=replace(experiment.data, context=context, batch_size=2 if options.tiny else 32),
        model=resolve(replace(model, dropout=0.0), vocab_size=V, context=context),
    )
    precision = "float32" if options.tiny else "bfloat16"
    in_turn(computed_with(experiment, precision=precision), options, say, "vaswani_base", ())


def draw(experiment, seed):
    """Return a batch of tokens of which the next depends on the last, so that there is something to learn."""
    import numpy as np

    rng = np.random.default_rng(seed)
    V, shape = experiment.model.vocab_size, (experiment.data.batch_size, experiment.data.context + 1)
    tokens = (V * rng.random(shape) ** 3).astype(np.int32)
    repeats = rng.random(shape) < 0.5
    for t in range(1, shape[1]):
        tokens[:, t] = np.where(repeats[:, t], (tokens[:, t - 1] * 7 + 1) % V, tokens[:, t])
    inputs = tokens[:, :-1]
    weights = np.ones(inputs.shape, np.float32)
    return {
        "inputs": inputs,
        "targets": tokens[:, 1:],
        "segments": np.zeros_like(inputs),
        "weights": weights,
    }


def curves(options, say):
    """The same small run in each precision: its loss in the last steps."""
    import jax
    import numpy as np

    from zerotollm.components import training_of

    small = base(options)
    if not options.tiny:
        model = replace(gpt2_124m().model, num_layers=4, width=256, num_heads=4)
        model = resolve(model, vocab_size=small.model.vocab_size, context=256)
        small = replace(small, data=replace(small.data, context=256, batch_size=8), model=model)
    small = replace(small, train=replace(small.train, steps=options.curve_steps))
    losses = {}
    for precision in PRECISIONS:
        experiment = computed_with(small, precision=precision)
        training, seed = training_of(experiment), np.uint32(0)
        state = jax.jit(training.init)(seed, None)
        step = jax.jit(training.train_step, donate_argnums=0)
        each = []
        for i in range(options.curve_steps):
            state, metrics = step(state, draw(experiment, i), seed)
            each.append(metrics["loss"])
        losses[precision] = float(np.mean([float(loss) for loss in each[-CURVE_END:]]))
    say(what=f"loss after {options.curve_steps} steps, mean of the last {CURVE_END}", **losses)


FUNCTIONS: dict[str, Callable] = {
    "precisions": precisions,
    "torch": torch,
    "attention": attention,
    "operations": longest_operations,
    "encoder_decoder": encoder_decoder,
    "options": xla_options,
    "curves": curves,
}


def run_section(name, options):
    """Measure one section in this process."""
    from zerotollm.host.gpu import prepare_gpu

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of it too
    prepare_gpu()

    def say(**line):
        text = json.dumps({"section": name, **line})
        print(text, flush=True)
        with options.out.open("a") as file:
            file.write(text + "\n")

    FUNCTIONS[name](options, say)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement in a round")
    parser.add_argument("--curve-steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("bench_gpu.jsonl"))
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.rounds, options.seconds, options.curve_steps = 1, 0.1, 60
    if options.section:
        return run_section(options.section, options)
    end = time.monotonic() + options.minutes * 60
    failed = False
    for name in options.only:
        limit = min(SECTIONS[name], end - time.monotonic())
        if limit < 10:
            print(f"{name}: no time left", flush=True)
            failed = True
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--section", name]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = f"cut after {limit:.0f} s"
        finally:  # with the sides that it started
            if process.poll() is None or code:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        failed = failed or bool(code)
        print(f"{name}: {code or 'done'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
