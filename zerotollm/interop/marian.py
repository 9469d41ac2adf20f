"""Marian of the `transformers` library (arXiv:1804.00344): our encoder-decoder, weight for weight.

Marian is the Transformer of arXiv:1706.03762 with biases in attention too. All sines of a position precede its cosines.
"""

from dataclasses import replace

from zerotollm.interop.config_json import ConfigField, ConfigFile, Json, choice, constant, count, flag, only
from zerotollm.interop.family import Family
from zerotollm.interop.weights import Weight, linear, norm
from zerotollm.model.config import TransformerConfig

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
FEED_FORWARD = {"up": "fc1", "down": "fc2"}
SUBLAYERS = {
    "attention": ("self_attn.", "self_attn_layer_norm", ATTENTION),
    "cross_attention": ("encoder_attn.", "encoder_attn_layer_norm", ATTENTION),
    "feed_forward": ("", "final_layer_norm", FEED_FORWARD),
}
"""Our sub-layer -> the prefix of its matrices in transformers, its norm, and its matrices."""
ACTIVATIONS = {"relu": "relu", "silu": "swish", "gelu": "gelu_new"}
SYNONYMS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
CHOICES = {"biases": "all", "sinusoid_layout": "halves", "norm_epsilon": 1e-5}
"""Details which the paper leaves open or has otherwise, as Marian has them."""


def nearest(model: TransformerConfig) -> TransformerConfig:
    """Return `model` with Marian's biases, sinusoid layout and epsilon: they change its cost by next to nothing."""
    return replace(model, **CHOICES)


def _same_in_encoder(theirs: str, ours: str) -> tuple[ConfigField, ConfigField]:
    """Map a number that config.json holds for encoder and decoder, and that is one number in ours."""
    decoder = f"decoder_{theirs}"

    def read(file: ConfigFile) -> Json:
        value = file.count(decoder)
        file.allow(f"encoder_{theirs}", value, (value,))
        return {}

    return ConfigField(count(f"encoder_{theirs}", ours).write, read), count(decoder, ours)


def _read_decoder_vocabulary(file: ConfigFile) -> Json:
    vocab_size = file.count("vocab_size")
    file.allow("decoder_vocab_size", vocab_size, (vocab_size, None))
    return {}


def weights(model: TransformerConfig) -> list[Weight]:
    tensors = [Weight("model.shared.weight", (("embedding",),))]
    sides = {
        "encoder": (model.encoder_layers, ("attention", "feed_forward")),
        "decoder": (model.num_layers, tuple(SUBLAYERS)),
    }
    for side, (layers, sublayers) in sides.items():
        for i in range(layers):
            theirs, ours = f"model.{side}.layers.{i}", (side, f"layer_{i}")
            for name in sublayers:
                prefix, layer_norm, matrices = SUBLAYERS[name]
                for matrix, their_matrix in matrices.items():
                    tensors += linear(f"{theirs}.{prefix}{their_matrix}", (*ours, name), matrix, model)
                tensors += norm(f"{theirs}.{layer_norm}", (*ours, f"{name}_norm"), model)
    if model.biases == "everywhere":
        tensors.append(Weight("final_logits_bias", (("head_bias",),), rows=1, optional=True))
    return tensors


FAMILY = Family(
    name="Marian",
    model_type="marian",
    architecture="MarianMTModel",
    fields=(
        count("vocab_size", "vocab_size"),
        count("d_model", "width"),
        count("encoder_layers", "encoder_layers"),
        count("decoder_layers", "num_layers"),
        *_same_in_encoder("attention_heads", "num_heads"),
        *_same_in_encoder("ffn_dim", "ff_width"),
        count("max_position_embeddings", "max_length", 1024),
        choice("activation_function", "feed_forward", ACTIVATIONS, "gelu", SYNONYMS),
        *(constant(f"{place}dropout", 0.0) for place in ("", "attention_", "activation_")),
        flag("scale_embedding", "embedding_scale", False),
        constant("share_encoder_decoder_embeddings", True, checked=True),
        constant("tie_word_embeddings", True, checked=True),
        constant("is_encoder_decoder", True),
        constant("forced_eos_token_id", None),
        only("normalize_before", False),
        only("normalize_embedding", False),
        ConfigField(lambda model: {}, _read_decoder_vocabulary),
        ConfigField(lambda _: {}, lambda _: {"biases": "everywhere"}, {"biases": ("all", "everywhere")}),
    ),
    fixed={
        "architecture": "encoder-decoder",
        "norm": "layer",
        "norm_position": "post",
        "norm_epsilon": CHOICES["norm_epsilon"],
        "position": "sinusoidal",
        "sinusoid_layout": CHOICES["sinusoid_layout"],
        "qk_norm": False,
        "tie_embeddings": True,
        "logit_soft_cap": 0.0,
        "token_shift": 0,
    },
    widths=lambda model: {
        "num_kv_heads": (model.num_heads, 0),
        **dict.fromkeys(("head_width", "key_width"), (model.width // model.num_heads, 0)),
    },
    weights=weights,
    prefix="model.",
    computed=r"model\.(encoder|decoder)\.embed_positions\.weight",
    copies=("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
    encoder_decoder=True,
)
