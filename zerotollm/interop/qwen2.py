"""Qwen2 of the `transformers` library (arXiv:2407.10671): Llama with biases on queries, keys and values."""

from typing import Any

from zerotollm.interop import llama
from zerotollm.interop.weights import Family, unlike
from zerotollm.model.config import TransformerConfig


def _obstacles(model: TransformerConfig) -> list[str]:
    needed = llama.SHARED | {"qk_norm": False, "biases": "qkv"}
    if model.head_width * model.num_heads != model.width:  # programs other than transformers read no head_dim
        needed = needed | {"head_width": (0, model.width // model.num_heads)}
    return unlike(model, needed) + llama.equal_widths(model)


def _read_config(file: Any) -> TransformerConfig:
    file.no_sliding_window()
    return llama.read_config(file, kv_heads=32, qk_norm=False, biases="qkv")


def _write_config(model: TransformerConfig) -> dict[str, Any]:
    return llama.write_config(model) | {"use_sliding_window": False}


FAMILY = Family(
    "Qwen2",
    "qwen2",
    "Qwen2ForCausalLM",
    _obstacles,
    _write_config,
    _read_config,
    llama.weights,
    "model.",
    llama.COMPUTED,
)
