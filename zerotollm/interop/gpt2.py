"""GPT-2 of the `transformers` library (Radford et al. 2019): LayerNorm, learned positions, biases everywhere.

Its matrices lie as ours do, input axis first; queries, keys and values are one matrix.
"""

from typing import Any

from zerotollm.interop.llama import DECODER, equal_widths
from zerotollm.interop.weights import Family, Weight, norm, unlike
from zerotollm.model.config import TransformerConfig, resolve

ONLY = DECODER | {"biases": "all", "norm": "layer", "position": "learned", "qk_norm": False}
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu"}
"""Ours and theirs; `gelu` is the approximation by tanh in both."""
READ = {"gelu_pytorch_tanh": "gelu", "swish": "silu"} | {theirs: ours for ours, theirs in ACTIVATIONS.items()}
QKV = ("query", "key", "value")


def _obstacles(model: TransformerConfig) -> list[str]:
    needed = ONLY | {"feed_forward": tuple(ACTIVATIONS), "num_kv_heads": (0, model.num_heads)}
    if model.num_heads * model.head_width != model.width:
        needed = needed | {"head_width": (0, model.width // model.num_heads)}
    return unlike(model, needed) + equal_widths(model)


def _write_config(model: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "n_positions": model.max_length,
        "n_embd": model.width,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ff_width,
        "activation_function": ACTIVATIONS[model.feed_forward],
        "layer_norm_epsilon": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _read_config(file: Any) -> TransformerConfig:
    file.allow("scale_attn_weights", True, (True,))
    file.allow("scale_attn_by_inverse_layer_idx", False, (False,))
    file.allow("add_cross_attention", False, (False,))
    activation = file.allow("activation_function", "gelu_new", tuple(READ))
    width, length, vocab_size = (
        file.count("n_embd"),
        file.count("n_positions", 1024),
        file.count("vocab_size"),
    )
    return resolve(
        TransformerConfig(
            vocab_size=vocab_size,
            max_length=length,
            num_layers=file.count("n_layer"),
            width=width,
            num_heads=file.count("n_head"),
            ff_width=file.count("n_inner", 4 * width),
            feed_forward=READ[activation],
            biases="all",
            norm="layer",
            norm_epsilon=file.number("layer_norm_epsilon", 1e-5),
            position="learned",
            qk_norm=False,
            tie_embeddings=file.flag("tie_word_embeddings", True),
        ),
        vocab_size=vocab_size,
        context=length,
    )


def weights(model: TransformerConfig) -> list[Weight]:
    """Every tensor; names as in `GPT2LMHeadModel`."""
    found = [
        Weight("transformer.wte.weight", (("embedding",),)),
        Weight("transformer.wpe.weight", (("positions",),)),
    ]
    for i in range(model.num_layers):
        at, attention, feed_forward = (
            f"transformer.h.{i}",
            (f"layer_{i}", "attention"),
            (f"layer_{i}", "feed_forward"),
        )
        for theirs, inside, names in (
            ("attn.c_attn", attention, QKV),
            ("attn.c_proj", attention, ("output",)),
            ("mlp.c_fc", feed_forward, ("up",)),
            ("mlp.c_proj", feed_forward, ("down",)),
        ):
            found.append(Weight(f"{at}.{theirs}.weight", tuple((*inside, name) for name in names)))
            found.append(Weight(f"{at}.{theirs}.bias", tuple((*inside, f"{name}_bias") for name in names)))
        found += norm(f"{at}.ln_1", (f"layer_{i}", "attention_norm"), model)
        found += norm(f"{at}.ln_2", (f"layer_{i}", "feed_forward_norm"), model)
    found += norm("transformer.ln_f", ("final_norm",), model)
    if not model.tie_embeddings:
        found.append(Weight("lm_head.weight", (("head",),), transposed=True))
    return found


FAMILY = Family(
    "GPT-2",
    "gpt2",
    "GPT2LMHeadModel",
    _obstacles,
    _write_config,
    _read_config,
    weights,
    "transformer.",
    # What old folders keep of the causal mask.
    r".*h\.\d+\.attn\.(bias|masked_bias)",
)
