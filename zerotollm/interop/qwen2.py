"""Qwen2 of the `transformers` library (arXiv:2407.10671): Llama with biases on queries, keys and values."""

from zerotollm.interop import llama

FAMILY = llama.FAMILY._replace(
    name="Qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=(*llama.shared_fields(kv_heads=32), llama.NO_SLIDING_WINDOW),
    fixed=llama.SHARED | {"qk_norm": False, "nope_every": 0, "biases": "qkv"},
    widths=llama.derived_widths,
)
