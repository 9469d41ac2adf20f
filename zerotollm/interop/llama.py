"""Llama (arXiv:2302.13971), and what later families share with it: RMSNorm, RoPE, SwiGLU, and all tensor names.

They differ in biases (Qwen2), in the norm of queries and keys (Qwen3), in the window of attention (Mistral) and in the
layers with RoPE (SmolLM3).
"""

from zerotollm.interop.config_json import (
    ConfigField,
    ConfigFile,
    Json,
    constant,
    count,
    flag,
    number,
    only,
    write_rope,
)
from zerotollm.interop.family import Family
from zerotollm.interop.weights import Weight, head, linear, norm
from zerotollm.model.config import TransformerConfig

DECODER = {
    "architecture": "decoder",
    "token_shift": 0,
    "embedding_scale": False,
    "logit_soft_cap": 0.0,
    "norm_position": "pre",
}
"""Fixed in every decoder of transformers that is supported here."""
SHARED = DECODER | {"feed_forward": "swiglu", "norm": "rms", "position": "rope"}
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
FEED_FORWARD = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
BIASES = {
    "none": (False, False),
    "attention": (True, False),
    "feed_forward": (False, True),
    "all": (True, True),
}
"""Our biases -> attention_bias and mlp_bias."""
BY_FLAGS = {flags: biases for biases, flags in BIASES.items()}
TWO_BIASES = ConfigField(
    lambda model: dict(zip(("attention_bias", "mlp_bias"), BIASES[model.biases], strict=True)),
    lambda file: {"biases": BY_FLAGS[file.flag("attention_bias"), file.flag("mlp_bias")]},
    {"biases": tuple(BIASES)},
)
COMPUTED = r".*rotary_emb\.inv_freq"


def shared_fields(
    kv_heads: int = 0, head_dim: int = 0, length: int = 2048, theta: float = 1e4, tied: bool = False
) -> tuple[ConfigField, ...]:
    """Return the fields that all these families share; the arguments are a family's defaults, 0 for derived sizes."""
    return (
        count("vocab_size", "vocab_size"),
        count("hidden_size", "width"),
        count("intermediate_size", "ff_width"),
        count("num_hidden_layers", "num_layers"),
        count("num_attention_heads", "num_heads"),
        count("num_key_value_heads", "num_kv_heads", 0, absent=kv_heads),
        count("head_dim", "head_width", 0, absent=head_dim),
        count("max_position_embeddings", "max_length", length),
        constant("hidden_act", "silu", also=("swish",)),
        number("rms_norm_eps", "norm_epsilon", 1e-6),
        flag("tie_word_embeddings", "tie_embeddings", tied),
        ConfigField(write_rope, lambda file: file.rope(theta)),
        constant("attention_dropout", 0.0),
        only("pretraining_tp", 1, None),
    )


def _read_sliding_window(file: ConfigFile) -> Json:
    file.allow("use_sliding_window", False, (False, None))
    for kind in file.fields.get("layer_types") or []:
        ConfigFile(file.path, {"layer_types": kind}).allow("layer_types", None, ("full_attention",))
    return {}


NO_SLIDING_WINDOW = ConfigField(lambda model: {"use_sliding_window": False}, _read_sliding_window)


def equal_widths(model: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Require queries and keys as wide as values."""
    return {"key_width": (model.head_width, 0)}


def derived_widths(model: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Require heads of width / num_heads too, where config.json holds no head_dim or other programs ignore it."""
    return {"head_width": (0, model.width // model.num_heads), **equal_widths(model)}


def weights(model: TransformerConfig) -> list[Weight]:
    """Return every tensor; names as in `LlamaForCausalLM`."""
    tensors = [Weight("model.embed_tokens.weight", (("embedding",),))]
    for i in range(model.num_layers):
        theirs, ours = f"model.layers.{i}", f"layer_{i}"
        for name, matrix in ATTENTION.items():
            tensors += linear(f"{theirs}.self_attn.{matrix}", (ours, "attention"), name, model)
        if model.qk_norm:
            tensors += norm(f"{theirs}.self_attn.q_norm", (ours, "attention", "query_norm"), model)
            tensors += norm(f"{theirs}.self_attn.k_norm", (ours, "attention", "key_norm"), model)
        for name, matrix in FEED_FORWARD.items():
            tensors += linear(f"{theirs}.mlp.{matrix}", (ours, "feed_forward"), name, model)
        for name, layer_norm in NORMS.items():
            tensors += norm(f"{theirs}.{layer_norm}", (ours, name), model)
    return [*tensors, *norm("model.norm", ("final_norm",), model), *head(model)]


FAMILY = Family(
    name="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=(*shared_fields(), TWO_BIASES, only("sliding_window", None)),
    fixed=SHARED | {"qk_norm": False, "nope_every": 0},
    widths=equal_widths,
    weights=weights,
    prefix="model.",
    computed=COMPUTED,
)
