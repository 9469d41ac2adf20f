"""Qwen3 of the `transformers` library (arXiv:2505.09388): our default decoder, weight for weight."""

from zerotollm.interop import llama
from zerotollm.interop.config_json import choice

FAMILY = llama.FAMILY._replace(
    name="Qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=(
        *llama.shared_fields(kv_heads=32, head_dim=128),
        choice("attention_bias", "biases", {"none": False, "attention": True}, False),
        llama.NO_SLIDING_WINDOW,
    ),
    fixed=llama.SHARED | {"qk_norm": True, "nope_every": 0},
)
