"""What `bench` times: our train step and sampler, and those of the PyTorch twin. Each side in a process of its own.

A side is a function that gets everything ready and returns (facts, measurements by name). A measurement takes
seconds and returns how long each step, or each text, took; it goes on until that time is over. `serve` runs a side
and measures what it is told to, and idles in between.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from zerotollm.errors import RunError, UsageError
from zerotollm.experiment import Experiment
from zerotollm.host.allocator import reuse_memory
from zerotollm.host.gpu import prepare_gpu
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.flops import head_rows, num_parameters
from zerotollm.session.devices import usable_cores
from zerotollm.session.summary import peak_memory_bytes

Measurements = dict[str, Callable[[float], list[float]]]
Side = tuple[dict[str, Any], Measurements]

DECODE_ROWS = (1, 16, 64)
"""Texts drawn at once."""
PROMPT = 4
"""Tokens that a text begins with."""
BATCHES = 8
"""Different batches, used in turn."""
WARM_UP = 3
"""Steps that are not measured."""


def serve(connection: Connection, side: Callable[..., Side], *arguments: Any) -> None:
    """Sends the facts, then answers (name of a measurement, seconds) for as long as somebody asks.

    UsageError and RunError are sent as answers; any other error is shown here and ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who then ends this process
    try:
        facts, measurements = side(*arguments)
        connection.send(facts)
        while True:
            try:
                name, seconds = connection.recv()
            except EOFError:  # the caller is gone
                return
            connection.send(measurements[name](seconds))
    except (UsageError, RunError) as error:
        connection.send(error)


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """How long each call took, until `seconds` are over; at least one."""
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


def paced(begin: Callable[[], Callable[[], None]], seconds: float, at_least: int = 1) -> list[float]:
    """Seconds from the end of a step to the end of the next, which was begun before, as in training, until `seconds`
    are over. `begin` begins a step and returns what waits for its end."""
    taken, wait = [], begin()
    last = time.perf_counter()
    end = last + seconds
    while len(taken) < at_least or last < end:
        following = begin()
        wait()
        wait, now = following, time.perf_counter()
        taken.append(now - last)
        last = now
    wait()
    return taken[1:] or taken  # the first began with nothing before it


def random_tokens(experiment: Experiment, vocab_size: int) -> list[Any]:
    """Some batches of int64 (B, T + 1): inputs and, one further, targets. Speed does not depend on the text."""
    import numpy as np

    shape, rng = experiment.data, np.random.default_rng(0)
    return [rng.integers(0, vocab_size, (shape.batch_size, shape.context + 1)) for _ in range(BATCHES)]


def translates(experiment: Experiment) -> bool:
    """Whether the model has an encoder: then training alone is measured, with sources as long as targets."""
    return experiment.model.architecture == "encoder-decoder"


def decode_rows(experiment: Experiment) -> tuple[int, ...]:
    """How many texts are drawn at once, in turn; none by a model that labels."""
    writes = not translates(experiment) and experiment.train.objective != "label"
    return DECODE_ROWS if writes else ()


def decode_lengths(context: int) -> tuple[int, int]:
    """Tokens of a prompt, and new tokens after it: together the whole context, and the one drawn at its end."""
    prompt = min(PROMPT, context)
    return prompt, context - prompt + 1


def ours(experiment: Experiment, *, decodes: bool = True, shared: bool = False) -> Side:
    """Our own side, with fresh parameters; measures "train", "product" and, if it `decodes`, "decode ROWS".

    Where the device is `shared`, jax takes memory as it needs it instead of nearly all that a GPU has.

    Facts: what the data makes of the model, `compile_seconds` of the train step without any cache, the memory that
    XLA plans for it, and the peak memory after some steps: of the device, or of the process on a CPU.
    """
    shape = experiment.data
    reuse_memory(shape.batch_size * shape.context * experiment.model.width)  # as in training
    if shared:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    prepare_gpu()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from zerotollm.components import computed, dataset_of, model_of, training_of
    from zerotollm.decoding import sample
    from zerotollm.model.accelerator import options_to_run_once, this_accelerator
    from zerotollm.planning.device_benchmark import PRODUCT
    from zerotollm.planning.memory import xla_memory
    from zerotollm.planning.speed import flops_per_token
    from zerotollm.run_directory import environment
    from zerotollm.session.job import job_for
    from zerotollm.training.lora import merge_params

    jax.config.update("jax_enable_compilation_cache", False)
    feed, train = dataset_of(experiment), experiment.train
    vocab_size = feed.vocab_size
    model = replace(experiment.model, num_classes=len(feed.labels))
    model = resolve(model, vocab_size=vocab_size, context=shape.context)
    experiment = replace(experiment, model=model)
    training = training_of(experiment)
    state = jax.jit(training.init, compiler_options=options_to_run_once())(np.uint32(train.seed), None)
    batches = [
        {
            "inputs": jnp.asarray(tokens[:, :-1], jnp.int32),
            "targets": jnp.asarray(tokens[:, 1:] % head_rows(model), jnp.int32),
            # A source without padding, whatever its tokens are.
            "sources": jnp.asarray(tokens[:, :0:-1] % (vocab_size - 1) + 1, jnp.int32),
            "segments": jnp.zeros((shape.batch_size, shape.context), jnp.int32),
            "weights": jnp.ones((shape.batch_size, shape.context), jnp.float32),
        }
        for tokens in random_tokens(experiment, vocab_size)
    ]
    for batch in batches:
        del batch["segments" if translates(experiment) else "sources"]
    step = jax.jit(training.train_step, donate_argnums=0)
    seed = np.uint32(train.seed)
    begun = time.perf_counter()
    compiled = step.lower(state, batches[0], seed).compile()
    compile_seconds = time.perf_counter() - begun
    micro_batch = {"inputs": batches[0]["inputs"][: shape.batch_size // experiment.train.micro_batches]}
    precision = computed(experiment, micro_batch).compute.precision

    count = 0

    def begin() -> Callable[[], None]:
        nonlocal state, count
        state, metrics = compiled(state, batches[count % BATCHES], seed)
        count += 1
        return partial(jax.block_until_ready, metrics)

    jax.block_until_ready(state)
    paced(begin, 0.0, WARM_UP)
    memory = jax.devices()[0].memory_stats() or {}
    facts = {
        "environment": environment(),
        "platform": jax.default_backend(),
        "precision": precision,
        "product": PRODUCT[jax.default_backend()],
        "model": model,
        "parameters": num_parameters(model),
        "flops_per_token": flops_per_token(job_for(experiment, this_accelerator())),
        "compile_seconds": compile_seconds,
        "peak_memory_bytes": memory.get("peak_bytes_in_use") or peak_memory_bytes(),
        "xla_memory_bytes": xla_memory(compiled),
    }

    params = jax.tree.map(jnp.copy, merge_params(state.params, state.frozen, train))
    greedy = replace(experiment.sample, prompt="", temperature=0.0)
    prompt, new = decode_lengths(shape.context)

    def decode(rows: int) -> None:
        rng = np.random.default_rng(rows)
        prompts = list(rng.integers(0, vocab_size, (rows, prompt)))
        drawn = sample.generate(
            params,
            model_of(experiment),
            prompts,
            replace(greedy, max_tokens=new),
            stop_id=-1,  # never drawn: all rows go on to the end
            num_tokens=vocab_size,
        )
        assert all(len(row) == new for row in drawn)

    matrix = jnp.ones((facts["product"], facts["product"]), precision)
    multiply = partial(jnp.matmul, preferred_element_type=jnp.float32)
    product = jax.jit(lambda matrix: multiply(matrix, matrix)).lower(matrix).compile()
    measurements: Measurements = {
        "train": partial(paced, begin),
        "product": partial(timed, lambda: product(matrix).block_until_ready()),
    }
    for rows in decode_rows(experiment) if decodes else ():
        measurements[f"decode {rows}"] = partial(timed, partial(decode, rows))
    for name in list(measurements)[1:]:
        measurements[name](0.0)  # compiles
    return facts, measurements


def torch_optimizers(kind: str, net: Any) -> list[Any]:
    """PyTorch's own version of an update rule, at a small rate; AdamW where it has none.

    As with us Muon trains the matrices inside the blocks, and AdamW the rest. PyTorch's takes whole matrices, five
    iterations and bfloat16, ours blocks, three and float32: what each side trains with is what is compared.
    AdamW is the fused one, which on a CPU takes a third of the time of the other.
    """
    import torch

    adamw = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    if kind == "muon":
        hidden, rest = [], []
        for name, parameter in net.named_parameters():
            inside = parameter.ndim == 2 and ".layers." in name
            (hidden if inside else rest).append(parameter)
        return [torch.optim.Muon(hidden, lr=1e-4), adamw(rest)]
    kinds = {"sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor}
    return [kinds[kind](net.parameters(), lr=1e-4) if kind in kinds else adamw(net.parameters())]


def torch_twin(experiment: Experiment, model: TransformerConfig, platform: str, precision: str) -> Side:
    """The same architecture from `transformers`, trained by PyTorch; measures "train" and "decode ROWS".

    `model` is resolved, `platform` jax's, `precision` that of our products. On a CPU all cores that this process may
    use; on a GPU as its users would have it: torch.compile, autocast, fused AdamW, and the host a step ahead. Raises
    RunError where we compute on a GPU and PyTorch cannot.
    """
    import torch
    import transformers

    from zerotollm.interop import marian, qwen3, token_shift

    transformers.logging.set_verbosity_error()
    if platform == "gpu" and not torch.cuda.is_available():
        raise RunError("jax computes on a GPU and this PyTorch cannot: install a build of torch with CUDA")
    device = torch.device("cuda" if platform == "gpu" else "cpu")
    torch.set_num_threads(usable_cores())
    torch.set_float32_matmul_precision("high")  # as jax does, where a GPU has TF32
    torch.manual_seed(0)
    pairs = translates(experiment)
    if pairs:
        net = marian.twin(model)
    else:
        net = qwen3.twin(replace(model, token_shift=0))
        if model.token_shift:
            token_shift.shift_embeddings(net, model.token_shift)
    net.to(device)
    optimizers = torch_optimizers(experiment.optimizer.kind, net)
    forward = torch.compile(net) if platform == "gpu" else net
    # Gradients in float16 without a scale may underflow, which takes no other time.
    half = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
    batches = [torch.from_numpy(tokens).to(device) for tokens in random_tokens(experiment, model.vocab_size)]
    rows = experiment.data.batch_size // experiment.train.micro_batches
    count = 0

    def step() -> Callable[[], None]:
        """Begins a step, which on a CPU is to do it; returns what waits for its end."""
        nonlocal count
        count += 1
        net.zero_grad()
        for part in batches[count % BATCHES].split(rows):
            if pairs:
                sources = part[:, 1:].flip(1) % (model.vocab_size - 1) + 1
                inputs = {"input_ids": sources, "decoder_input_ids": part[:, :-1]}
            else:
                inputs = {"input_ids": part[:, :-1]}
            with half:
                logits = forward(**inputs, use_cache=False).logits
                nats = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(),
                    part[:, 1:].flatten(),
                    label_smoothing=experiment.train.label_smoothing,
                )
            (nats / experiment.train.micro_batches).backward()
        for optimizer in optimizers:
            optimizer.step()
        if platform != "gpu":
            return lambda: None
        end = torch.cuda.Event()
        end.record()
        return end.synchronize

    def train(seconds: float) -> list[float]:
        net.train()
        return paced(step, seconds)

    prompt, new = decode_lengths(experiment.data.context)
    greedy = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )

    def decode(rows: int) -> None:
        net.eval()
        prompts = torch.randint(model.vocab_size, (rows, prompt), device=device)
        drawn = net.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=greedy).cpu()
        assert drawn.shape == (rows, prompt + new)

    for _ in range(WARM_UP):
        step()()
    peak = torch.cuda.max_memory_allocated() if platform == "gpu" else peak_memory_bytes()
    facts = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "peak_memory_bytes": peak,
        "optimizer": " and ".join(type(optimizer).__name__ for optimizer in optimizers),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    measurements: Measurements = {"train": train}
    for rows_at_once in decode_rows(experiment):
        measurements[f"decode {rows_at_once}"] = partial(timed, partial(decode, rows_at_once))
        decode(rows_at_once)
    return facts, measurements
