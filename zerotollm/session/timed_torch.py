"""PyTorch's side of `bench`: the same architecture from `transformers`. Without jax: memory is then PyTorch's alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

from zerotollm.errors import RunError
from zerotollm.experiment import Experiment
from zerotollm.host.peak_memory import peak_memory_bytes
from zerotollm.interop import marian
from zerotollm.interop.torch_model import decoder_family, shift_embeddings, torch_model
from zerotollm.model.config import TransformerConfig
from zerotollm.session import timed_sides as sides


class TorchFacts(TypedDict):
    """What bench.json holds of PyTorch besides rates."""

    parameters: int
    peak_memory_bytes: int
    """after some steps: of the device, or of the process on a CPU"""
    optimizer: str
    threads: int
    versions: dict[str, str]


def torch_optimizers(kind: str, net: Any) -> list[Any]:
    """Return PyTorch's own optimizers of that kind for a `torch.nn.Module`, at a small rate; AdamW where it has none.

    As in our training, Muon trains the matrices inside the blocks and AdamW the rest. PyTorch's Muon takes whole
    matrices, five iterations and bfloat16; ours takes blocks, three iterations and float32. Each side is compared as
    it trains. AdamW is the fused one, which takes a third of the time on a CPU.
    """
    import torch

    adamw = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    if kind == "muon":
        hidden, rest = [], []
        for name, parameter in net.named_parameters():
            (hidden if parameter.ndim == 2 and ".layers." in name else rest).append(parameter)
        return [torch.optim.Muon(hidden, lr=1e-4), adamw(rest)]
    kinds = {"sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor}
    return [kinds[kind](net.parameters(), lr=1e-4) if kind in kinds else adamw(net.parameters())]


def torch_side(
    experiment: Experiment, model: TransformerConfig, platform: str, precision: str, cores: int
) -> tuple[TorchFacts, sides.Measurements]:
    """Prepare the measurements "train" and those of texts.

    `model` is resolved, `platform` jax's, `precision` that of our products. A CPU computes on `cores` threads. A GPU
    computes with torch.compile, autocast, fused AdamW and the host a step ahead, as its users would have it. Raises
    RunError where jax computes on a GPU and PyTorch cannot.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    if platform == "gpu" and not torch.cuda.is_available():
        raise RunError("jax computes on a GPU and this PyTorch cannot: install a build of torch with CUDA")
    device = torch.device("cuda" if platform == "gpu" else "cpu")
    torch.set_num_threads(cores)
    torch.set_float32_matmul_precision("high")  # as jax does, where a GPU has TF32
    torch.manual_seed(0)
    pairs = model.encoder_layers > 0
    if pairs:
        net = torch_model(marian.FAMILY, model)
    else:
        net = torch_model(decoder_family(model), replace(model, token_shift=0))
        if model.token_shift:
            shift_embeddings(net, model.token_shift)
    net.to(device)
    optimizers = torch_optimizers(experiment.optimizer.kind, net)
    forward = torch.compile(net) if platform == "gpu" else net
    # float16 gradients may underflow without a loss scale, which takes no time to speak of.
    autocast = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
    batches = [
        torch.from_numpy(tokens).to(device) for tokens in sides.random_tokens(experiment, model.vocab_size)
    ]
    train = experiment.train
    rows = experiment.data.batch_size // train.micro_batches
    count = 0

    def begin() -> Callable[[], object]:
        """On a CPU the step is then done."""
        nonlocal count
        count += 1
        net.zero_grad()
        for micro_batch in batches[count % sides.BATCHES].split(rows):
            inputs = {"input_ids": micro_batch[:, :-1]}
            if pairs:
                sources = micro_batch[:, 1:].flip(1) % (model.vocab_size - 1) + 1
                inputs = {"input_ids": sources, "decoder_input_ids": micro_batch[:, :-1]}
            with autocast:
                logits = forward(**inputs, use_cache=False).logits.flatten(0, 1).float()
                targets = micro_batch[:, 1:].flatten()
                loss = torch.nn.functional.cross_entropy(
                    logits, targets, label_smoothing=train.label_smoothing
                )
            (loss / train.micro_batches).backward()
        for optimizer in optimizers:
            optimizer.step()
        if platform != "gpu":
            return lambda: None
        end = torch.cuda.Event()
        end.record()
        return end.synchronize

    def measure_training(seconds: float) -> list[float]:
        net.train()
        return sides.paced(begin, seconds)

    def write(texts: sides.Texts) -> None:
        net.eval()
        greedy = transformers.GenerationConfig(
            max_new_tokens=texts.new, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        prompts = torch.randint(model.vocab_size, (texts.rows, texts.prompt), device=device)
        ids = net.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=greedy).cpu()
        assert ids.shape == (texts.rows, texts.prompt + texts.new)

    for _ in range(sides.WARM_UP):
        begin()()
    facts: TorchFacts = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if platform == "gpu" else peak_memory_bytes(),
        "optimizer": " and ".join(type(optimizer).__name__ for optimizer in optimizers),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    measurements: dict[str, Callable[[float], list[float]]] = {"train": measure_training}
    for name, texts in sides.text_measurements(experiment).items():
        measurements[name] = partial(sides.timed, partial(write, texts))
        write(texts)  # warm-up
    return facts, measurements
