"""The encoder-decoder as the `transformers` library has it: Marian (arXiv:1804.00344), weight for weight.

Marian is the Transformer of the paper with biases in attention too and with all sines of a position before its cosines.
Nothing heavy is imported before it is needed.
"""

from dataclasses import replace
from typing import Any

from zerotollm.interop.weights import (
    Family,
    Weight,
    check,
    from_theirs,
    linear,
    norm,
    parameter_shapes,
    unlike,
)
from zerotollm.model.config import TransformerConfig, resolve

ONLY = {
    "architecture": "encoder-decoder",
    "feed_forward": ("relu", "silu", "gelu"),
    "biases": ("all", "everywhere"),
    "norm": "layer",
    "norm_position": "post",
    "norm_epsilon": 1e-5,
    "position": "sinusoidal",
    "sinusoid_layout": "halves",
    "qk_norm": False,
    "tie_embeddings": True,
    "logit_soft_cap": 0.0,
    "token_shift": 0,
}
"""Fields of TransformerConfig that Marian leaves little choice of."""

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
SUBLAYERS = {
    "attention": ("self_attn", "self_attn_layer_norm"),
    "cross_attention": ("encoder_attn", "encoder_attn_layer_norm"),
    "feed_forward": ("", "final_layer_norm"),
}
"""A sub-layer with us: where transformers keeps its matrices, and its norm."""
ACTIVATIONS = {"relu": "relu", "silu": "swish", "gelu": "gelu_new"}
READ = {"silu": "silu", "gelu_pytorch_tanh": "gelu"} | {theirs: ours for ours, theirs in ACTIVATIONS.items()}
COMPUTED = r"model\.(encoder|decoder)\.(embed_positions|embed_tokens)\.weight"
"""Sinusoids, and copies of the one embedding."""


def nearest(model: TransformerConfig) -> TransformerConfig:
    """`model` with Marian's biases, layout of sinusoids and epsilon, and nothing else changed: the paper leaves them
    open or has them otherwise, and they cost next to nothing."""
    return replace(model, biases="all", sinusoid_layout="halves", norm_epsilon=1e-5)


def _obstacles(model: TransformerConfig) -> list[str]:
    width = model.width // model.num_heads
    return unlike(
        model,
        ONLY
        | {
            "num_kv_heads": (model.num_heads, 0),
            "head_width": (width, 0),
            "key_width": (width, 0),
        },
    )


def check_twin(model: TransformerConfig) -> None:
    """Raises UsageError, naming the field, where `model` (resolved or not) is no Marian."""
    check(FAMILY, model)


def twin(model: TransformerConfig, *, pad_id: int = 0, bos_id: int = 1, eos_id: int = 2) -> Any:
    """The same architecture with fresh weights: a `transformers.MarianMTModel`. `model` is resolved.

    Raises UsageError as `check_twin` does.
    """
    check_twin(model)
    from transformers import MarianConfig, MarianMTModel

    return MarianMTModel(
        MarianConfig(
            **_write_config(model) | {"dropout": model.dropout},
            pad_token_id=pad_id,
            bos_token_id=bos_id,
            eos_token_id=eos_id,
            decoder_start_token_id=bos_id,
        )
    )


def from_state_dict(weights_by_name: dict[str, Any], model: TransformerConfig) -> dict[str, Any]:
    """Marian's weights, as `MarianMTModel.state_dict` has them, as our nested dict of float32 numpy arrays.

    Raises KeyError where a weight is missing; the sinusoids, which we compute, are left out.
    """
    return from_theirs(
        weights(model),
        parameter_shapes(model),
        lambda name, shape: weights_by_name[name].detach().cpu().numpy(),
    )


def _write_config(model: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.num_layers,
        "encoder_attention_heads": model.num_heads,
        "decoder_attention_heads": model.num_heads,
        "encoder_ffn_dim": model.ff_width,
        "decoder_ffn_dim": model.ff_width,
        "max_position_embeddings": model.max_length,
        "activation_function": ACTIVATIONS[model.feed_forward],
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": model.embedding_scale,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "forced_eos_token_id": None,
    }


def _read_config(file: Any) -> TransformerConfig:
    file.allow("share_encoder_decoder_embeddings", True, (True,))
    file.allow("normalize_before", False, (False,))
    file.allow("normalize_embedding", False, (False,))
    file.allow("tie_word_embeddings", True, (True,))
    vocab_size, length = file.count("vocab_size"), file.count("max_position_embeddings", 1024)
    file.allow("decoder_vocab_size", vocab_size, (vocab_size, None))
    activation = file.allow("activation_function", "gelu", tuple(READ))
    heads, ff_width = file.count("decoder_attention_heads"), file.count("decoder_ffn_dim")
    file.allow("encoder_attention_heads", heads, (heads,))
    file.allow("encoder_ffn_dim", ff_width, (ff_width,))
    return resolve(
        TransformerConfig(
            architecture="encoder-decoder",
            vocab_size=vocab_size,
            max_length=length,
            num_layers=file.count("decoder_layers"),
            encoder_layers=file.count("encoder_layers"),
            width=file.count("d_model"),
            num_heads=heads,
            ff_width=ff_width,
            feed_forward=READ[activation],
            biases="everywhere",
            norm="layer",
            norm_position="post",
            norm_epsilon=1e-5,
            position="sinusoidal",
            sinusoid_layout="halves",
            qk_norm=False,
            tie_embeddings=True,
            embedding_scale=file.flag("scale_embedding", False),
        ),
        vocab_size=vocab_size,
        context=length,
    )


def weights(model: TransformerConfig) -> list[Weight]:
    """Every tensor; names as in `MarianMTModel`."""
    found = [Weight("model.shared.weight", (("embedding",),))]
    sides = {
        "encoder": (model.encoder_layers, ("attention", "feed_forward")),
        "decoder": (model.num_layers, SUBLAYERS),
    }
    for side, (layers, sublayers) in sides.items():
        for i in range(layers):
            at, layer = f"model.{side}.layers.{i}", (side, f"layer_{i}")
            for name in sublayers:
                inner, their_norm = SUBLAYERS[name]
                matrices = (
                    {"up": "fc1", "down": "fc2"}
                    if name == "feed_forward"
                    else {ours: f"{inner}.{theirs}" for ours, theirs in ATTENTION.items()}
                )
                for ours, theirs in matrices.items():
                    found += linear(f"{at}.{theirs}", (*layer, name), ours, model)
                found += norm(f"{at}.{their_norm}", (*layer, f"{name}_norm"), model)
    if model.biases == "everywhere":
        found.append(Weight("final_logits_bias", (("head_bias",),), rows=1))
    return found


FAMILY = Family(
    "Marian", "marian", "MarianMTModel", _obstacles, _write_config, _read_config, weights, "model.", COMPUTED
)
