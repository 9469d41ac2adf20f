"""One configuration for every model here. No heavy imports: the command line reads this file."""

from dataclasses import dataclass, replace
from typing import Literal

from zerotollm.errors import UsageError

_QKV, _GATED = ("query", "key", "value"), ("gate", "up", "down")
BIASED = {
    "none": (),
    "qkv": _QKV,
    "attention": (*_QKV, "output"),
    "feed_forward": _GATED,
    "all": (*_QKV, "output", *_GATED),
    "everywhere": (*_QKV, "output", *_GATED, "head"),
}
"""The matrices that a choice of `biases` adds vectors after."""


@dataclass(frozen=True)
class TransformerConfig:
    """A decoder, or encoder and decoder. With the defaults it is the architecture of Qwen3 (arXiv:2505.09388)."""

    architecture: Literal["decoder", "encoder-decoder"] = "decoder"
    """decoder: continues a text; encoder-decoder: reads a source, writes a target (arXiv:1706.03762, figure 1)"""
    vocab_size: int = 0
    """rows of the embedding; 0: taken from the tokenizer, rounded up to a multiple of 64"""
    num_classes: int = 0
    """labels that a head of its own tells apart, reading the last token or, in an encoder, the mean of all; 0: the head
    predicts tokens. Set by the data where train.objective is label"""
    max_length: int = 0
    """longest context the model is built for; 0: the context it is trained with"""
    num_layers: int = 4
    """Transformer blocks, of the decoder where there is an encoder too"""
    encoder_layers: int = 0
    """encoder-decoder only: blocks of the encoder; 0: as many as num_layers"""
    width: int = 192
    """model width D"""
    num_heads: int = 3
    """query heads H"""
    num_kv_heads: int = 0
    """key and value heads K (GQA, arXiv:2305.13245); 0: as many as query heads"""
    head_width: int = 0
    """width C of a head; 0: width / num_heads"""
    key_width: int = 0
    """width of a head's queries and keys (d_k, arXiv:1706.03762, section 3.2.2); 0: head_width (d_v)"""
    ff_width: int = 0
    """feed-forward width F; 0: 4 x width, or 8/3 x width for swiglu, so that both cost the same"""
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2", "silu"] = "swiglu"
    """swiglu (arXiv:2002.05202), gelu (arXiv:1606.08415), relu (arXiv:1706.03762), relu2 (arXiv:2109.08668), silu
    (arXiv:1702.03118)"""
    biases: Literal["none", "qkv", "attention", "feed_forward", "all", "everywhere"] = "none"
    """vectors added after matrices: on queries, keys and values (arXiv:2407.10671, section 2.2.1), on the output of
    attention too, in the feed-forward alone (arXiv:1706.03762, equation 2), in both, or in an encoder-decoder on the
    logits besides (arXiv:1804.00344)"""
    norm: Literal["rms", "layer"] = "rms"
    """rms (arXiv:1910.07467) or layer (arXiv:1607.06450)"""
    norm_position: Literal["pre", "post"] = "pre"
    """pre (arXiv:2002.04745) or post, as in the paper (arXiv:1706.03762, section 3.1)"""
    position: Literal["rope", "sinusoidal", "learned", "none"] = "rope"
    """rope (arXiv:2104.09864), sinusoidal or learned (arXiv:1706.03762, section 3.5), or none"""
    sinusoid_layout: Literal["interleaved", "halves"] = "interleaved"
    """sines and cosines in turn, as in the paper, or all sines before all cosines, as in its authors' library"""
    rope_theta: float = 10000.0
    """longest wavelength of rope is 2 pi times this, in tokens"""
    cross_rope: bool = False
    """where positions are rope, it turns queries and keys of cross attention too, each by its place in its own text
    (arXiv:2104.09864, equation 34, across two texts): a translation runs along its source"""
    qk_norm: bool = True
    """norm of queries and keys before their product (arXiv:2010.04245)"""
    tie_embeddings: bool = False
    """the output matrix is the embedding matrix (arXiv:1608.05859); source and target always share theirs"""
    token_shift: int = 0
    """embeddings of this many earlier tokens are added, with learned weights (RWKV, arXiv:2305.13048); of an
    encoder-decoder on both sides"""
    embedding_scale: bool = False
    """multiply embeddings by sqrt(width) (arXiv:1706.03762, section 3.4)"""
    initialization: Literal["scaled", "plain", "zero"] = "scaled"
    """matrices that write to the residual stream start 1 / sqrt(2L) as large (scaled, GPT-2, section 2.3), as
    large as others (plain), or at zero (zero, arXiv:1901.09321)"""
    dropout: float = 0.0
    """rate on each sub-layer's output and on the embedding sum (arXiv:1706.03762, section 5.4)"""
    logit_soft_cap: float = 0.0
    """logits become cap x tanh(logits / cap) (Gemma 2, arXiv:2408.00118); 0: none"""
    norm_epsilon: float = 1e-6
    """added to the variance in norms"""


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


def resolve(config: TransformerConfig, *, vocab_size: int, context: int) -> TransformerConfig:
    """The same configuration with every 0 that means "derived" replaced by its number, and checked.

    `vocab_size` is the tokenizer's, `context` the tokens in a training window. Resolving twice changes
    nothing. Raises UsageError, naming the field, where the numbers do not fit together.
    """
    for name in ("num_layers", "width", "num_heads", "rope_theta", "norm_epsilon"):
        if not getattr(config, name) > 0:
            raise UsageError(f"model.{name} is {getattr(config, name)}, and must be above 0")
    for name in (
        "vocab_size",
        "num_classes",
        "max_length",
        "encoder_layers",
        "num_kv_heads",
        "head_width",
        "key_width",
        "ff_width",
        "logit_soft_cap",
        "token_shift",
    ):
        if not getattr(config, name) >= 0:
            raise UsageError(f"model.{name} is {getattr(config, name)}, and must be 0 (see --help) or above")
    if config.token_shift > 16:
        raise UsageError(f"model.token_shift is {config.token_shift}, and must be at most 16")
    pair = config.architecture == "encoder-decoder"
    if config.biases == "everywhere" and not pair:
        raise UsageError("model.biases everywhere is for encoder-decoders alone: set it to all")
    if config.encoder_layers and not pair:
        raise UsageError("model.encoder_layers is set, but a decoder has no encoder: set model.architecture")
    if not 0 <= config.dropout < 1:
        raise UsageError(f"model.dropout is {config.dropout}, and must be at least 0 and below 1")
    if config.head_width == 0 and config.width % config.num_heads:
        divisors = [heads for heads in range(1, config.width + 1) if config.width % heads == 0]
        nearest = min(divisors, key=lambda heads: abs(heads - config.num_heads))
        raise UsageError(
            f"model.width {config.width} is not divisible by model.num_heads {config.num_heads}: "
            f"take {nearest} head{'s' * (nearest != 1)}, or set model.head_width"
        )

    heads = config.num_heads
    # A gated feed-forward has three matrices instead of two, so two thirds of the width cost the same; a
    # multiple of 64 keeps matrix units busy, which for tiny models would change the size too much.
    gated_width = round_up(-(-8 * config.width // 3), 64 if config.width >= 128 else 8)
    head_width = config.head_width or config.width // heads
    resolved = replace(
        config,
        vocab_size=config.vocab_size or round_up(vocab_size, 64),
        max_length=config.max_length or context,
        num_kv_heads=config.num_kv_heads or heads,
        encoder_layers=(config.encoder_layers or config.num_layers) if pair else 0,
        head_width=head_width,
        key_width=config.key_width or head_width,
        ff_width=config.ff_width or (gated_width if config.feed_forward == "swiglu" else 4 * config.width),
    )
    if heads % resolved.num_kv_heads:
        raise UsageError(
            f"model.num_kv_heads {resolved.num_kv_heads} does not divide model.num_heads {heads}"
        )
    if config.position == "rope" and resolved.key_width % 2:
        raise UsageError(
            f"rope turns pairs of numbers, and a head is {resolved.key_width} wide: "
            "change model.num_heads or model.head_width so that it is even"
        )
    if config.position == "sinusoidal" and config.width % 2:
        raise UsageError(
            f"sinusoidal positions fill pairs of numbers, and model.width is {config.width}: make it even"
        )
    if context > resolved.max_length:
        raise UsageError(
            f"data.context {context} is longer than model.max_length {resolved.max_length}: "
            "lower the one or raise the other"
        )
    if vocab_size > resolved.vocab_size:
        raise UsageError(
            f"model.vocab_size {resolved.vocab_size} is below the tokenizer's {vocab_size}: set it to 0"
        )
    return resolved
