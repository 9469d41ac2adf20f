"""Our decoder as the `transformers` library has it: Qwen3 (arXiv:2505.09388), weight for weight.

Nothing heavy is imported before it is needed: the command line asks here whether a model has a twin at all.
"""

from importlib.util import find_spec
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.interop import llama
from zerotollm.interop.weights import Family, check, to_theirs, unlike
from zerotollm.model.config import TransformerConfig


def _obstacles(model: TransformerConfig) -> list[str]:
    needed = llama.SHARED | {"qk_norm": True, "biases": ("none", "attention")}
    return unlike(model, needed) + llama.equal_widths(model)


def _write_config(model: TransformerConfig) -> dict[str, Any]:
    biased = model.biases == "attention"
    return llama.write_config(model) | {"attention_bias": biased, "use_sliding_window": False}


def _read_config(file: Any) -> TransformerConfig:
    file.no_sliding_window()
    biases = "attention" if file.flag("attention_bias", False) else "none"
    return llama.read_config(file, kv_heads=32, head_dim=128, qk_norm=True, biases=biases)


FAMILY = Family(
    "Qwen3",
    "qwen3",
    "Qwen3ForCausalLM",
    _obstacles,
    _write_config,
    _read_config,
    llama.weights,
    "model.",
    llama.COMPUTED,
)


def check_twin(model: TransformerConfig) -> None:
    """Raises UsageError, naming the field, where `model` (resolved or not) is no Qwen3."""
    check(FAMILY, model)


def check_installed() -> None:
    """Raises UsageError, with the command that helps, where torch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install -r requirements-dev.txt"
        )


def twin(model: TransformerConfig) -> Any:
    """The same architecture with fresh weights: a `transformers.Qwen3ForCausalLM`. `model` is resolved.

    Raises UsageError as `check_twin` does.
    """
    check_twin(model)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_write_config(model), bos_token_id=None, eos_token_id=None))


def to_state_dict(params: Any, model: TransformerConfig) -> dict[str, Any]:
    """Our parameters under the names of `transformers`: torch tensors that share no memory with ours."""
    import torch

    tensors = {name: torch.from_numpy(x) for name, x in to_theirs(params, FAMILY.weights(model)).items()}
    return {"lm_head.weight": tensors["model.embed_tokens.weight"]} | tensors
