"""Options of a model's architecture. No heavy imports: the command line reads this file."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from zerotollm.errors import UsageError
from zerotollm.fields import ADDED, Bounds, FractionBelowOne, PositiveFloat, PositiveInt, check_fields

_QKV, _FEED_FORWARD = ("query", "key", "value"), ("gate", "up", "down")
BIASED = {
    "none": (),
    "qkv": _QKV,
    "attention": (*_QKV, "output"),
    "feed_forward": _FEED_FORWARD,
    "all": (*_QKV, "output", *_FEED_FORWARD),
    "everywhere": (*_QKV, "output", *_FEED_FORWARD, "head"),
}
"""The matrices with a bias, for each value of `biases`."""

ROPE_STRETCHED, ROPE_KEPT = 1.0, 4.0
"""Periods in `rope_original_length` tokens up to which a wave of rope is stretched in full, and from which it is kept:
`low_freq_factor` and `high_freq_factor` of every Llama 3."""


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder, or encoder and decoder. The defaults are the architecture of Qwen3 (arXiv:2505.09388)."""

    architecture: Literal["decoder", "encoder-decoder"] = "decoder"
    """decoder: continues a text; encoder-decoder: reads a source, writes a target (arXiv:1706.03762, figure 1)"""
    vocab_size: int = 0
    """rows of the embedding; 0: the tokenizer's vocabulary, rounded up to a multiple of 64"""
    num_classes: int = field(default=0, metadata=ADDED)
    """labels of a classification head, which reads the last token or, in an encoder, the mean of all; 0: the head
    predicts tokens. The data sets it if train.objective is label"""
    max_length: int = 0
    """longest context; 0: the context of training"""
    num_layers: PositiveInt = 4
    """Transformer blocks; encoder-decoder: of the decoder"""
    encoder_layers: int = 0
    """encoder-decoder: blocks of the encoder; 0: num_layers"""
    width: PositiveInt = 192
    """model width D"""
    num_heads: PositiveInt = 3
    """query heads H"""
    num_kv_heads: int = 0
    """key and value heads K (GQA, arXiv:2305.13245); 0: num_heads"""
    head_width: int = 0
    """width C of a head; 0: width / num_heads"""
    key_width: int = 0
    """width of a head's queries and keys (d_k, arXiv:1706.03762, section 3.2.2); 0: head_width (d_v)"""
    ff_width: int = 0
    """feed-forward width F; 0: 4 x width, or 8/3 x width for swiglu, which has the same number of parameters"""
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2", "silu"] = "swiglu"
    """swiglu (arXiv:2002.05202), gelu (arXiv:1606.08415), relu (arXiv:1706.03762), relu2 (arXiv:2109.08668), silu
    (arXiv:1702.03118)"""
    biases: Literal["none", "qkv", "attention", "feed_forward", "all", "everywhere"] = "none"
    """layers with a bias. qkv: queries, keys and values (arXiv:2407.10671, section 2.2.1); attention: its output too;
    feed_forward: the feed-forward only (arXiv:1706.03762, equation 2); all: both; everywhere: in an encoder-decoder,
    the logits too (arXiv:1804.00344)"""
    norm: Literal["rms", "layer"] = "rms"
    """rms (arXiv:1910.07467) or layer (arXiv:1607.06450)"""
    norm_position: Literal["pre", "post"] = "pre"
    """pre (arXiv:2002.04745) or post (arXiv:1706.03762, section 3.1)"""
    position: Literal["rope", "sinusoidal", "learned", "none"] = "rope"
    """rope (arXiv:2104.09864), sinusoidal or learned (arXiv:1706.03762, section 3.5), or none"""
    sinusoid_layout: Literal["interleaved", "halves"] = "interleaved"
    """interleaved sines and cosines, as in the paper, or all sines before all cosines, as in its authors' library"""
    rope_theta: PositiveFloat = 10000.0
    """longest wavelength of rope, in tokens, divided by 2 pi"""
    rope_factor: Annotated[float, Bounds(at_least=1)] = field(default=1.0, metadata=ADDED)
    """wavelengths of rope are multiplied by this, for contexts longer than those of pretraining (position
    interpolation, arXiv:2306.15595)"""
    rope_original_length: int = field(default=0, metadata=ADDED)
    """context of pretraining, for rope_factor as in Llama 3 (arXiv:2407.21783): wavelengths above it are multiplied,
    those below a quarter of it are not, those between in part; 0: all are multiplied"""
    nope_every: int = field(default=0, metadata=ADDED)
    """decoder: every n-th block has no rope and no other positions (NoPE, arXiv:2305.19466; with rope in the other
    blocks, arXiv:2501.18795); 0: all blocks have rope"""
    cross_rope: bool = field(default=False, metadata=ADDED)
    """apply rope in cross-attention too, each token at its position in its own text (arXiv:2104.09864, equation 34,
    across two texts): a translation proceeds along its source"""
    qk_norm: bool = True
    """normalize queries and keys before their product (arXiv:2010.04245)"""
    tie_embeddings: bool = False
    """share the embedding and the output matrix (arXiv:1608.05859); source and target always share an embedding"""
    token_shift: Annotated[int, Bounds(0, 16)] = 0
    """number of earlier tokens whose embeddings are added, with learned weights (RWKV, arXiv:2305.13048);
    encoder-decoder: on both sides"""
    previous_token_heads: Annotated[int, Bounds(0, 16)] = field(default=0, metadata=ADDED)
    """number of heads of the first layers that are initialized to attend to the token 1, 2, ... before, by the biases
    of their queries and keys; all heads if there are fewer; encoder-decoder: on both sides. Needs rope, biases, and no
    qk_norm"""
    previous_token_layers: Annotated[int, Bounds(at_least=1)] = field(default=1, metadata=ADDED)
    """number of layers with such heads, from the first on; all layers if there are fewer"""
    embedding_scale: bool = False
    """multiply embeddings by sqrt(width) (arXiv:1706.03762, section 3.4)"""
    initialization: Literal["scaled", "plain", "zero"] = "scaled"
    """residual output projections are initialized with std scaled by 1/sqrt(2L) (scaled, GPT-2, section 2.3), with the
    std of all matrices (plain), or with zeros (zero, arXiv:1901.09321)"""
    dropout: FractionBelowOne = 0.0
    """dropout rate on the output of each sub-layer and on the embedding sum (arXiv:1706.03762, section 5.4)"""
    logit_soft_cap: float = 0.0
    """logits become cap x tanh(logits / cap) (Gemma 2, arXiv:2408.00118); 0: no cap"""
    norm_epsilon: PositiveFloat = 1e-6
    """added to the variance in norms"""


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


def resolve(config: TransformerConfig, *, vocab_size: int, context: int) -> TransformerConfig:
    """Return the configuration with every 0 that means "derived" replaced by its number. Idempotent.

    `vocab_size` is the tokenizer's, `context` the tokens in a training window. Raises UsageError, naming the field,
    if a number is out of bounds or contradicts another.
    """
    check_fields(config, "model.")
    has_encoder = config.architecture == "encoder-decoder"
    if config.biases == "everywhere" and not has_encoder:
        raise UsageError("model.biases everywhere needs an encoder-decoder: set it to all")
    if config.encoder_layers and not has_encoder:
        raise UsageError(
            "model.encoder_layers needs an encoder: set model.architecture to encoder-decoder, or leave it out"
        )
    if config.head_width == 0 and config.width % config.num_heads:
        divisors = [heads for heads in range(1, config.width + 1) if config.width % heads == 0]
        nearest = min(divisors, key=lambda heads: abs(heads - config.num_heads))
        raise UsageError(
            f"model.width {config.width} is not divisible by model.num_heads {config.num_heads}: "
            f"take {nearest} head{'s' * (nearest != 1)}, or set model.head_width"
        )

    # Two thirds of the width cost the same, since a gated feed-forward has three matrices instead of two. A multiple
    # of 64 suits matrix units; in tiny models it would change the size too much.
    gated_width = round_up(-(-8 * config.width // 3), 64 if config.width >= 128 else 8)
    head_width = config.head_width or config.width // config.num_heads
    resolved = replace(
        config,
        vocab_size=config.vocab_size or round_up(vocab_size, 64),
        max_length=config.max_length or context,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        encoder_layers=(config.encoder_layers or config.num_layers) if has_encoder else 0,
        head_width=head_width,
        key_width=config.key_width or head_width,
        ff_width=config.ff_width or (gated_width if config.feed_forward == "swiglu" else 4 * config.width),
    )
    if config.num_heads % resolved.num_kv_heads:
        raise UsageError(
            f"model.num_kv_heads {resolved.num_kv_heads} does not divide model.num_heads {config.num_heads}"
        )
    if config.position == "rope" and resolved.key_width % 2:
        raise UsageError(
            f"rope rotates pairs of features, and a head has {resolved.key_width}: change model.num_heads or "
            "model.head_width to make it even"
        )
    if config.previous_token_heads:
        wanted = {"model.position": ("rope", config.position), "model.qk_norm": (False, config.qk_norm)}
        if not {"query", "key"} <= set(BIASED[config.biases]):
            wanted["model.biases"] = ("qkv", config.biases)
        for name, (value, found) in wanted.items():
            if value != found:
                raise UsageError(
                    f"model.previous_token_heads needs {name} {value}, and it is {found}: set it, or set "
                    "model.previous_token_heads to 0"
                )
    if config.nope_every and (config.position != "rope" or has_encoder):
        raise UsageError("model.nope_every needs a decoder with model.position rope: set it to 0")
    if config.nope_every == 1:
        raise UsageError(
            "model.nope_every 1 leaves no block with rope: set it to 0 and model.position to none"
        )
    if config.position == "sinusoidal" and config.width % 2:
        raise UsageError(
            f"sinusoidal positions fill pairs of features, and model.width is {config.width}: make it even"
        )
    if context > resolved.max_length:
        raise UsageError(
            f"data.context {context} is longer than model.max_length {resolved.max_length}: "
            "lower data.context or raise model.max_length"
        )
    if vocab_size > resolved.vocab_size:
        raise UsageError(
            f"model.vocab_size {resolved.vocab_size} is below the tokenizer's {vocab_size}: set it to 0"
        )
    return resolved
