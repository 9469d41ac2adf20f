"""Our decoder as the `transformers` library has it: Qwen3 (arXiv:2505.09388), weight for weight.

Nothing heavy is imported before it is needed: the command line asks here whether a model has a twin at all.
"""

from importlib.util import find_spec
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig

ONLY = {
    "architecture": "decoder",
    "biases": "none",
    "feed_forward": "swiglu",
    "norm": "rms",
    "norm_position": "pre",
    "position": "rope",
    "qk_norm": True,
    "embedding_scale": False,
    "token_shift": 0,
    "logit_soft_cap": 0.0,
}
"""Fields of TransformerConfig that Qwen3 leaves no choice of."""

BLOCK = {
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "output"): "self_attn.o_proj",
    ("attention", "query_norm", "scale"): "self_attn.q_norm",
    ("attention", "key_norm", "scale"): "self_attn.k_norm",
    ("attention_norm", "scale"): "input_layernorm",
    ("feed_forward_norm", "scale"): "post_attention_layernorm",
    ("feed_forward", "gate"): "mlp.gate_proj",
    ("feed_forward", "up"): "mlp.up_proj",
    ("feed_forward", "down"): "mlp.down_proj",
}
"""Where a block's parameters are with us, and what transformers calls them."""


def check_twin(model: TransformerConfig) -> None:
    """Raises UsageError, naming the field, where `model` (resolved or not) is no Qwen3."""
    for name, needed in ONLY.items():
        value = getattr(model, name)
        if value != needed:
            raise UsageError(
                f"model.{name} is {value!r}, and Qwen3 of transformers knows only {needed!r}: "
                "this model has no twin there"
            )
    if model.key_width not in (0, model.head_width):
        raise UsageError(
            f"model.key_width is {model.key_width}, and in Qwen3 of transformers all of a head is as wide: "
            "this model has no twin there"
        )


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

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=model.vocab_size,
            hidden_size=model.width,
            intermediate_size=model.ff_width,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            head_dim=model.head_width,
            max_position_embeddings=model.max_length,
            hidden_act="silu",
            rms_norm_eps=model.norm_epsilon,
            tie_word_embeddings=model.tie_embeddings,
            attention_bias=False,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def to_state_dict(params: Any) -> dict[str, Any]:
    """Our parameters under the names of `transformers`: torch tensors that share no memory with ours.

    torch keeps a matrix with its output axis first, we with its input axis first.
    """
    import numpy as np
    import torch

    def tensor(x):
        return torch.from_numpy(np.array(x))

    head = params["head"].T if "head" in params else params["embedding"]
    weights = {
        "model.embed_tokens.weight": tensor(params["embedding"]),
        "model.norm.weight": tensor(params["final_norm"]["scale"]),
        "lm_head.weight": tensor(head),
    }
    for i in range(sum(name.startswith("layer_") for name in params)):
        for path, name in BLOCK.items():
            x = params[f"layer_{i}"]
            for part in path:
                x = x[part]
            weights[f"model.layers.{i}.{name}.weight"] = tensor(x.T if x.ndim == 2 else x)
    return weights
