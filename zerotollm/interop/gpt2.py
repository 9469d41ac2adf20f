"""GPT-2 of the `transformers` library (Radford et al. 2019): LayerNorm, learned positions, biases everywhere.

Its matrices have the input axis first, as ours. Queries, keys and values are one matrix.
"""

from zerotollm.interop.config_json import choice, constant, count, flag, number, only
from zerotollm.interop.family import Family
from zerotollm.interop.llama import DECODER, derived_widths
from zerotollm.interop.weights import Weight, head, norm
from zerotollm.model.config import TransformerConfig

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu"}
"""Ours -> theirs; `gelu` is the tanh approximation in both."""
SYNONYMS = {"gelu_pytorch_tanh": "gelu", "swish": "silu"}
MATRICES = {
    "attn.c_attn": ("attention", ("query", "key", "value")),
    "attn.c_proj": ("attention", ("output",)),
    "mlp.c_fc": ("feed_forward", ("up",)),
    "mlp.c_proj": ("feed_forward", ("down",)),
}
NORMS = {"ln_1": "attention_norm", "ln_2": "feed_forward_norm"}


def weights(model: TransformerConfig) -> list[Weight]:
    tables = {"wte": "embedding", "wpe": "positions"}
    tensors = [Weight(f"transformer.{theirs}.weight", ((ours,),)) for theirs, ours in tables.items()]
    for i in range(model.num_layers):
        theirs, ours = f"transformer.h.{i}", f"layer_{i}"
        for matrix, (sublayer, names) in MATRICES.items():
            for suffix, ending in (("weight", ""), ("bias", "_bias")):
                paths = tuple((ours, sublayer, name + ending) for name in names)
                tensors.append(Weight(f"{theirs}.{matrix}.{suffix}", paths))
        for layer_norm, name in NORMS.items():
            tensors += norm(f"{theirs}.{layer_norm}", (ours, name), model)
    return [*tensors, *norm("transformer.ln_f", ("final_norm",), model), *head(model)]


FAMILY = Family(
    name="GPT-2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields=(
        count("vocab_size", "vocab_size"),
        count("n_positions", "max_length", 1024),
        count("n_embd", "width"),
        count("n_layer", "num_layers"),
        count("n_head", "num_heads"),
        count("n_inner", "ff_width", 0),
        choice("activation_function", "feed_forward", ACTIVATIONS, "gelu_new", SYNONYMS),
        number("layer_norm_epsilon", "norm_epsilon", 1e-5),
        flag("tie_word_embeddings", "tie_embeddings", True),
        *(constant(f"{name}_pdrop", 0.0) for name in ("resid", "embd", "attn")),
        only("scale_attn_weights", True),
        only("scale_attn_by_inverse_layer_idx", False),
        only("add_cross_attention", False),
    ),
    fixed=DECODER | {"biases": "all", "norm": "layer", "position": "learned", "qk_norm": False},
    widths=lambda model: {"num_kv_heads": (0, model.num_heads), **derived_widths(model)},
    weights=weights,
    prefix="transformer.",
    # Causal masks, which old folders hold.
    computed=r".*h\.\d+\.attn\.(bias|masked_bias)",
)
