"""The encoder-decoder as the `transformers` library has it: Marian (arXiv:1804.00344), weight for weight.

Marian is the Transformer of the paper with biases in attention too and with all sines of a position before its cosines.
Nothing heavy is imported before it is needed.
"""

from dataclasses import replace
from typing import Any

from zerotollm.errors import UsageError
from zerotollm.model.config import TransformerConfig

ONLY = {
    "architecture": "encoder-decoder",
    "feed_forward": "relu",
    "biases": "all",
    "norm": "layer",
    "norm_position": "post",
    "norm_epsilon": 1e-5,
    "position": "sinusoidal",
    "sinusoid_layout": "halves",
    "qk_norm": False,
    "tie_embeddings": True,
    "embedding_scale": True,
    "logit_soft_cap": 0.0,
}
"""Fields of TransformerConfig that Marian leaves no choice of."""

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
SUBLAYERS = {
    "attention": ("self_attn", "self_attn_layer_norm"),
    "cross_attention": ("encoder_attn", "encoder_attn_layer_norm"),
    "feed_forward": ("", "final_layer_norm"),
}
"""A sub-layer with us: where transformers keeps its matrices, and its norm."""


def nearest(model: TransformerConfig) -> TransformerConfig:
    """`model` with Marian's biases, layout of sinusoids and epsilon, and nothing else changed: the paper leaves them
    open or has them otherwise, and they cost next to nothing."""
    return replace(model, biases="all", sinusoid_layout="halves", norm_epsilon=1e-5)


def check_twin(model: TransformerConfig) -> None:
    """Raises UsageError, naming the field, where `model` (resolved or not) is no Marian."""
    needed = ONLY | {
        "num_kv_heads": model.num_heads,
        "head_width": model.width // model.num_heads,
        "key_width": model.width // model.num_heads,
    }
    for name, value in needed.items():
        if getattr(model, name) not in (value, 0):
            raise UsageError(
                f"model.{name} is {getattr(model, name)!r}, and Marian of transformers knows only {value!r}: "
                "this model has no twin there"
            )


def twin(model: TransformerConfig, *, pad_id: int = 0, bos_id: int = 1, eos_id: int = 2) -> Any:
    """The same architecture with fresh weights: a `transformers.MarianMTModel`. `model` is resolved.

    Raises UsageError as `check_twin` does.
    """
    check_twin(model)
    from transformers import MarianConfig, MarianMTModel

    return MarianMTModel(
        MarianConfig(
            vocab_size=model.vocab_size,
            d_model=model.width,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.num_layers,
            encoder_attention_heads=model.num_heads,
            decoder_attention_heads=model.num_heads,
            encoder_ffn_dim=model.ff_width,
            decoder_ffn_dim=model.ff_width,
            max_position_embeddings=model.max_length,
            activation_function="relu",
            dropout=model.dropout,
            attention_dropout=0.0,
            activation_dropout=0.0,
            scale_embedding=True,
            pad_token_id=pad_id,
            bos_token_id=bos_id,
            eos_token_id=eos_id,
            forced_eos_token_id=None,
            decoder_start_token_id=bos_id,
        )
    )


def from_state_dict(weights: dict[str, Any]) -> dict[str, Any]:
    """Marian's weights, as `MarianMTModel.state_dict` has them, as our nested dict of float32 numpy arrays.

    torch keeps a matrix with its output axis first, we with its input axis first. Raises KeyError where a weight is
    missing; the sinusoids, which we compute, and `final_logits_bias`, which Marian does not train, are left out.
    """
    import numpy as np

    def array(name: str) -> np.ndarray:
        x = weights[name].detach().cpu().numpy().astype(np.float32)
        return x.T.copy() if x.ndim == 2 and name != "model.shared.weight" else x

    def affine(ours: str, theirs: str) -> dict[str, np.ndarray]:
        return {ours: array(f"{theirs}.weight"), f"{ours}_bias": array(f"{theirs}.bias")}

    def layer(at: str, sublayers: tuple[str, ...]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for name in sublayers:
            inner, norm = SUBLAYERS[name]
            if name == "feed_forward":
                params[name] = affine("up", f"{at}.fc1") | affine("down", f"{at}.fc2")
            else:
                params[name] = {
                    key: value
                    for ours, theirs in ATTENTION.items()
                    for key, value in affine(ours, f"{at}.{inner}.{theirs}").items()
                }
            params[f"{name}_norm"] = {
                "scale": array(f"{at}.{norm}.weight"),
                "bias": array(f"{at}.{norm}.bias"),
            }
        return params

    def stack(side: str, sublayers: tuple[str, ...]) -> dict[str, Any]:
        start = f"model.{side}.layers."
        numbers = {int(name[len(start) :].split(".")[0]) for name in weights if name.startswith(start)}
        return {f"layer_{i}": layer(f"{start}{i}", sublayers) for i in sorted(numbers)}

    return {
        "embedding": array("model.shared.weight"),
        "encoder": stack("encoder", ("attention", "feed_forward")),
        "decoder": stack("decoder", ("attention", "cross_attention", "feed_forward")),
    }
