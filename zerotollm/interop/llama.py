"""What Llama, Qwen2 and Qwen3 of the `transformers` library share: RMSNorm, RoPE, SwiGLU, and the names of all tensors.

They differ in biases and in the norm of queries and keys. No heavy imports.
"""

from typing import Any

from zerotollm.interop.weights import Family, Weight, linear, norm, unlike
from zerotollm.model.config import TransformerConfig, resolve

DECODER = {
    "architecture": "decoder",
    "token_shift": 0,
    "embedding_scale": False,
    "logit_soft_cap": 0.0,
    "norm_position": "pre",
}
"""Fields that no decoder here leaves a choice of."""
SHARED = DECODER | {"feed_forward": "swiglu", "norm": "rms", "position": "rope"}
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
FEED_FORWARD = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
BIASES = {
    (False, False): "none",
    (True, False): "attention",
    (False, True): "feed_forward",
    (True, True): "all",
}
"""attention_bias and mlp_bias of Llama, and what they are with us."""
COMPUTED = r".*rotary_emb\.inv_freq"


def equal_widths(model: TransformerConfig) -> list[str]:
    """Queries and keys as wide as values, which all families want."""
    return unlike(model, {"key_width": (model.head_width, 0)})


def weights(model: TransformerConfig) -> list[Weight]:
    """Every tensor; names as in `LlamaForCausalLM`."""
    found = [Weight("model.embed_tokens.weight", (("embedding",),))]
    for i in range(model.num_layers):
        at, layer = f"model.layers.{i}", f"layer_{i}"
        for ours, theirs in ATTENTION.items():
            found += linear(f"{at}.self_attn.{theirs}", (layer, "attention"), ours, model)
        if model.qk_norm:
            found += norm(f"{at}.self_attn.q_norm", (layer, "attention", "query_norm"), model)
            found += norm(f"{at}.self_attn.k_norm", (layer, "attention", "key_norm"), model)
        for ours, theirs in FEED_FORWARD.items():
            found += linear(f"{at}.mlp.{theirs}", (layer, "feed_forward"), ours, model)
        found += norm(f"{at}.input_layernorm", (layer, "attention_norm"), model)
        found += norm(f"{at}.post_attention_layernorm", (layer, "feed_forward_norm"), model)
    found += norm("model.norm", ("final_norm",), model)
    if not model.tie_embeddings:
        found.append(Weight("lm_head.weight", (("head",),), transposed=True))
    return found


def write_config(model: TransformerConfig) -> dict[str, Any]:
    """Their fields, without the biases."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.ff_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_width,
        "max_position_embeddings": model.max_length,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        # Both spellings: transformers 5, and what came before it and other programs.
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rope_theta": model.rope_theta,
        "attention_dropout": 0.0,
    }


def read_config(file: Any, *, kv_heads: int = 0, head_dim: int = 0, **fields: Any) -> TransformerConfig:
    """Ours, resolved, from a `ConfigFile`; `fields` are what a family adds. Zeros: derived where the file is silent,
    as they are where it says null."""
    file.allow("hidden_act", "silu", ("silu", "swish"))
    file.allow("pretraining_tp", 1, (1, None))
    heads, vocab_size = file.count("num_attention_heads"), file.count("vocab_size")
    length = file.count("max_position_embeddings", 2048)
    kv_heads = 0 if "num_key_value_heads" in file.fields else kv_heads
    head_dim = 0 if "head_dim" in file.fields else head_dim
    return resolve(
        TransformerConfig(
            vocab_size=vocab_size,
            max_length=length,
            num_layers=file.count("num_hidden_layers"),
            width=file.count("hidden_size"),
            num_heads=heads,
            num_kv_heads=file.count("num_key_value_heads", kv_heads) or heads,
            head_width=file.count("head_dim", head_dim),
            ff_width=file.count("intermediate_size"),
            feed_forward="swiglu",
            norm="rms",
            norm_epsilon=file.number("rms_norm_eps", 1e-6),
            position="rope",
            rope_theta=file.rope_theta(),
            tie_embeddings=file.flag("tie_word_embeddings", False),
            **fields,
        ),
        vocab_size=vocab_size,
        context=length,
    )


def _obstacles(model: TransformerConfig) -> list[str]:
    needed = SHARED | {"qk_norm": False, "biases": tuple(BIASES.values())}
    return unlike(model, needed) + equal_widths(model)


def _write_config(model: TransformerConfig) -> dict[str, Any]:
    attention, feed_forward = {biases: flags for flags, biases in BIASES.items()}[model.biases]
    return write_config(model) | {"attention_bias": attention, "mlp_bias": feed_forward}


def _read_config(file: Any) -> TransformerConfig:
    file.allow("sliding_window", None, (None,))
    flags = file.flag("attention_bias", False), file.flag("mlp_bias", False)
    return read_config(file, qk_norm=False, biases=BIASES[flags])


FAMILY = Family(
    "Llama", "llama", "LlamaForCausalLM", _obstacles, _write_config, _read_config, weights, "model.", COMPUTED
)
"""Llama (arXiv:2302.13971, arXiv:2307.09288)."""
