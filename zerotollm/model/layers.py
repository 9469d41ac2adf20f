"""The layers of a Transformer: norm, positions, attention, feed-forward, as Flax Linen modules.

Shape letters are explained in `transformer.py`; X and Y stand for any width. Every kernel is one matrix with its input
axis first: `x_BTX @ kernel_XY`. Encoder, decoder and cross attention are all `Attention`.

Activations to explain are sown into the collection "intermediates". They cost nothing unless a caller makes it mutable
(`zerotollm.explain.activations`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zerotollm.model.chunked_attention import AttentionMask
from zerotollm.model.config import BIASED, ROPE_KEPT, ROPE_STRETCHED, TransformerConfig
from zerotollm.sharding.constraints import concurrent_parts
from zerotollm.types import Json


class KVCache(NamedTuple):
    """Keys and values of the previous positions, of one layer."""

    keys_BKSC: jax.Array
    values_BKSC: jax.Array


def fan_in_normal(fan_in: int, gain: float = 1.0) -> nn.initializers.Initializer:
    """Return a normal with std gain / sqrt(fan_in): unit-variance input gives output of variance gain^2."""
    return nn.initializers.normal(stddev=gain / fan_in**0.5)


def linear(
    x_BTX: jax.Array, kernel_XY: jax.Array, bias_Y: jax.Array | None = None, out_type: DTypeLike | None = None
) -> jax.Array:
    """Return the product with a kernel, plus a bias: (B, T, Y) in `out_type` or the type of `x_BTX`.

    Operands are flattened, since XLA's CPU backend materializes transposes of higher rank in the backward pass.
    """
    B, T, X = x_BTX.shape
    kernel_XY = kernel_XY.astype(x_BTX.dtype)
    y_BTY = jnp.matmul(x_BTX.reshape(B * T, X), kernel_XY, preferred_element_type=out_type).reshape(B, T, -1)
    return y_BTY if bias_Y is None else y_BTY + bias_Y.astype(y_BTY.dtype)[None, None]


FUSED = (("query", "key", "value"), ("gate", "up"))
"""Matrices that read the same input."""


def fuse_projections(params: Json) -> Json:
    """Return parameters for decoding token by token: the matrices of `FUSED` become one, named `query+key+value`.

    A product with few rows costs little more than the call and reading its matrix. Sharded parameters stay separate, as
    does cross attention, whose keys and values are precomputed.
    """
    if any(len(getattr(x, "devices", set)()) > 1 for x in jax.tree.leaves(params)):
        return params
    fused: Json = {
        name: fuse_projections(value) if isinstance(value, dict) and name != "cross_attention" else value
        for name, value in params.items()
    }
    for names in FUSED:
        if not set(names) <= params.keys():
            continue
        kernels = [fused.pop(name) for name in names]
        fused["+".join(names)] = jnp.concatenate(kernels, axis=1)
        if any(f"{name}_bias" in params for name in names):
            biases = [
                fused.pop(f"{n}_bias", jnp.zeros(k.shape[1])) for n, k in zip(names, kernels, strict=True)
            ]
            fused["+".join(names) + "_bias"] = jnp.concatenate(biases)
    return fused


def fused_projections(
    module: nn.Module, names: tuple[str, ...], widths: tuple[int, ...], x_BTX: jax.Array
) -> dict[str, jax.Array]:
    """Return the outputs of the fused matrices of `module` by name, each (B, T, its width); {} without these."""
    name = "+".join(names)
    if not module.has_variable("params", name):
        return {}
    y_BTY = linear(x_BTX, module.get_variable("params", name), module.get_variable("params", f"{name}_bias"))
    ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    return dict(zip(names, jnp.split(y_BTY, ends, axis=-1), strict=True))


def normalize(
    config: TransformerConfig, x: jax.Array, scale: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Return RMSNorm (arXiv:1910.07467, equation 4) or LayerNorm (arXiv:1607.06450) of the last axis, in float32."""
    y = x.astype(jnp.float32)
    if config.norm == "layer":
        y -= y.mean(-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + config.norm_epsilon)
    y *= scale.reshape((1,) * (x.ndim - 1) + (-1,))
    if bias is not None:
        y += bias.reshape((1,) * (x.ndim - 1) + (-1,))
    return y.astype(x.dtype)


class Norm(nn.Module):
    """`normalize` with learned `scale` and, for LayerNorm, `bias`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = self.param("scale", nn.initializers.ones, (x.shape[-1],)), None
        if self.config.norm == "layer":
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalize(self.config, x, scale, bias)


class Dropout(nn.Module):
    """Dropout (arXiv:1706.03762, section 5.4) with 16 random bits per element, and so a rate rounded to 1/65536.

    `nn.Dropout` draws 32, which are most of its cost on a CPU.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if deterministic or not self.rate:
            return x
        dropped = round(self.rate * 2**16)
        half = -(-x.shape[-1] // 2)
        words = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], half), jnp.uint32)
        bits = jnp.concatenate([words >> 16, words & 0xFFFF], axis=-1)[..., : x.shape[-1]]
        return jnp.where(bits >= dropped, x * (2**16 / (2**16 - dropped)), 0)


def sinusoid(positions_BT: jax.Array, width: int, layout: str = "interleaved") -> jax.Array:
    """Return sinusoidal positions (arXiv:1706.03762, section 3.5), (B, T, width) in float32; `width` is even.

    Even features are sines and odd ones cosines; with the layout "halves" all sines come before all cosines.
    """
    wavelengths_D = 10000.0 ** (jnp.arange(0, width, 2) / width)
    angles_BTD = positions_BT[..., None] / wavelengths_D[None, None]
    axis = -1 if layout == "interleaved" else -2
    return jnp.stack([jnp.sin(angles_BTD), jnp.cos(angles_BTD)], axis=axis).reshape(
        *positions_BT.shape, width
    )


def rope_frequencies(config: TransformerConfig, pairs: int) -> jax.Array:
    """Return the angle between neighbouring positions of each pair of features, (pairs,) in float32."""
    frequencies_C = config.rope_theta ** (-jnp.arange(pairs) / pairs)
    if config.rope_factor == 1:
        return frequencies_C
    kept_C = 0.0
    if config.rope_original_length:
        # Periods of a wave in the context of pretraining: 1 or fewer are stretched, 4 or more are kept.
        periods_C = config.rope_original_length * frequencies_C / (2 * jnp.pi)
        kept_C = jnp.clip((periods_C - ROPE_STRETCHED) / (ROPE_KEPT - ROPE_STRETCHED), 0, 1)
    return frequencies_C * (kept_C + (1 - kept_C) / config.rope_factor)


@jax.named_scope("rope")
def rope(config: TransformerConfig, x_BHTC: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Apply rotary positions (RoFormer, arXiv:2104.09864, equation 34), feature i paired with i + C/2 as in Llama.

    The product of a rotated query and a rotated key depends only on the difference of their positions. C is even.
    """
    B, H, T, C = x_BHTC.shape
    frequencies_C = rope_frequencies(config, C // 2)
    angles_BTC = positions_BT[..., None] * frequencies_C[None, None]
    cos, sin = jnp.cos(angles_BTC), jnp.sin(angles_BTC)
    # One expression with a flip: slices and concatenations cost XLA several more passes.
    cos_B1T2C = jnp.stack([cos, cos], axis=2)[:, None]
    sin_B1T2C = jnp.stack([-sin, sin], axis=2)[:, None]
    x_BHT2C = x_BHTC.reshape(B, H, T, 2, C // 2)
    rotated = x_BHT2C * cos_B1T2C + jnp.flip(x_BHT2C, axis=-2) * sin_B1T2C
    return rotated.reshape(B, H, T, C).astype(x_BHTC.dtype)


@jax.named_scope("scores")
def attention_weights(q_BHTC: jax.Array, k_BKSC: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Return softmax(q k / sqrt(C)) (arXiv:1706.03762, equation 1), (B, H, T, S) in float32."""
    return jax.nn.softmax(attention_scores(q_BHTC, k_BKSC, mask_BTS), axis=-1)


def attention_scores(q_BHTC: jax.Array, k_BKSC: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Return q k / sqrt(C), the least number where the mask is False, (B, H, T, S) in float32.

    Query head h reads key head h // (H / K) (GQA, arXiv:2305.13245). `mask_BTS` is True where a query may attend; its
    first and second axes may be 1. A query that may attend nowhere has equal weights: mask its loss.
    """
    B, H, T, C = q_BHTC.shape
    K = k_BKSC.shape[1]
    # Query heads of one key head are concatenated along time: one larger matrix product instead of H/K.
    q_BKXC = q_BHTC.reshape(B, K, (H // K) * T, C) * C**-0.5
    scores_BKXS = jnp.einsum("bkxc,bksc->bkxs", q_BKXC, k_BKSC, preferred_element_type=jnp.float32)
    scores_BHTS = scores_BKXS.reshape(B, H, T, -1)
    return jnp.where(mask_BTS[:, None], scores_BHTS, jnp.finfo(jnp.float32).min)


@jax.named_scope("mix_values")
def mix_values(weights_BHTS: jax.Array, v_BKSC: jax.Array) -> jax.Array:
    """Return the sum of values weighted by attention, (B, H, T, C), in the type of `v_BKSC`."""
    B, H, T, _ = weights_BHTS.shape
    K = v_BKSC.shape[1]
    weights_BKXS = weights_BHTS.astype(v_BKSC.dtype).reshape(B, K, (H // K) * T, -1)
    return jnp.einsum("bkxs,bksc->bkxc", weights_BKXS, v_BKSC).reshape(B, H, T, -1)


def split_heads(x_BTY: jax.Array, heads: int) -> jax.Array:
    """Reshape (B, T, H C) to (B, H, T, C)."""
    return x_BTY.reshape(*x_BTY.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def source_keys_values(config: TransformerConfig, params: Json, context_BSD: jax.Array) -> KVCache:
    """Return the keys and values of a cross `Attention` with these parameters."""
    k_BKSC, v_BKSC = (
        split_heads(linear(context_BSD, params[name], params.get(f"{name}_bias")), config.num_kv_heads)
        for name in ("key", "value")
    )
    if config.qk_norm:
        k_BKSC = normalize(config, k_BKSC, **params["key_norm"])
    if config.position == "rope" and config.cross_rope:
        k_BKSC = rope(config, k_BKSC, jnp.arange(k_BKSC.shape[2])[None])
    return KVCache(k_BKSC, v_BKSC)


def write_slots(cache_BKSC: jax.Array, new_BKTC: jax.Array, slot: jax.Array | int) -> jax.Array:
    """Return the cache with new keys or values from `slot` on: one slot for all rows, or one per row, (B,)."""
    if jnp.ndim(slot) == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache_BKSC, new_BKTC, slot, axis=2)
    write = partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(write)(cache_BKSC, new_BKTC, slot)


def project(module: nn.Module, name: str, x_BTX: jax.Array, width: int, gain: float = 1.0) -> jax.Array:
    """Return the product with the kernel `name` of `module`, plus a bias if `biases` says so: (B, T, width)."""
    X, bias_Y = x_BTX.shape[-1], None
    kernel_XY = module.param(name, fan_in_normal(X, gain), (X, width))
    if name in BIASED[module.config.biases]:
        bias_Y = module.param(f"{name}_bias", nn.initializers.zeros, (width,))
    return linear(x_BTX, kernel_XY, bias_Y)


class Attention(nn.Module):
    """Multi-head attention (arXiv:1706.03762, section 3.2.2), grouped-query where K < H."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BTS: jax.Array | AttentionMask,
        positions_BT: jax.Array,
        *,
        context_BSD: jax.Array | None = None,
        known: KVCache | None = None,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Return the output (B, T, D), and the keys and values attended to.

        Keys and values come from `context_BSD` (cross attention), from `x_BTD`, or are the `known` ones of an earlier
        call. With a cache, new ones are written from `slot` on, and the whole cache is attended to.
        """
        c = self.config
        H, K, C, D = c.num_heads, c.num_kv_heads, c.head_width, c.width
        source_BSD = x_BTD if context_BSD is None else context_BSD

        widths = (H * c.key_width, K * c.key_width, K * C)
        fused = fused_projections(self, FUSED[0], widths, x_BTD)

        def project_heads(name: str, x_BXD: jax.Array, heads: int, width: int) -> jax.Array:
            y_BXY = fused[name] if name in fused else project(self, name, x_BXD, heads * width)
            return split_heads(y_BXY, heads)

        q_BHTC = project_heads("query", x_BTD, H, c.key_width)
        if c.qk_norm:
            q_BHTC = Norm(c, name="query_norm")(q_BHTC)
        if known is None:
            k_BKSC = project_heads("key", source_BSD, K, c.key_width)
            v_BKSC = project_heads("value", source_BSD, K, C)
            if c.qk_norm:
                k_BKSC = Norm(c, name="key_norm")(k_BKSC)
        else:
            k_BKSC, v_BKSC = known
        crosses = context_BSD is not None or known is not None
        if c.position == "rope" and (c.cross_rope or not crosses):
            q_BHTC = rope(c, q_BHTC, positions_BT)
            if known is None:
                positions_BS = jnp.arange(k_BKSC.shape[2])[None] if crosses else positions_BT
                k_BKSC = rope(c, k_BKSC, positions_BS)
        if cache is not None:
            k_BKSC = write_slots(cache.keys_BKSC, k_BKSC, slot)
            v_BKSC = write_slots(cache.values_BKSC, v_BKSC, slot)
        mixed_BHTC = self.attend(q_BHTC, k_BKSC, v_BKSC, mask_BTS)
        mixed_BTY = mixed_BHTC.transpose(0, 2, 1, 3).reshape(*x_BTD.shape[:2], H * C)
        out_BTD = project(self, "output", self.gated(mixed_BTY, x_BTD), D, residual_gain(c))
        return out_BTD, KVCache(k_BKSC, v_BKSC)

    def attend(
        self, q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, mask_BTS: jax.Array | AttentionMask
    ) -> jax.Array:
        """Return the values mixed by attention, (B, H, T, C). A subclass may mix them otherwise."""
        if isinstance(mask_BTS, AttentionMask):
            return mask_BTS.attend(q_BHTC, k_BKSC, v_BKSC)
        B, _, T, _ = q_BHTC.shape
        if T == 1 or self.is_mutable_collection("intermediates") or (parts := concurrent_parts(B)) == 1:
            weights_BHTS = attention_weights(q_BHTC, k_BKSC, mask_BTS)
            self.sow("intermediates", "weights_BHTS", weights_BHTS)
            return mix_values(weights_BHTS, v_BKSC)
        masks = jnp.split(mask_BTS, parts) if len(mask_BTS) == B else [mask_BTS] * parts
        split = zip(*(jnp.split(x, parts) for x in (q_BHTC, k_BKSC, v_BKSC)), masks, strict=True)
        return jnp.concatenate([mix_values(attention_weights(q, k, mask), v) for q, k, v, mask in split])

    def gated(self, mixed_BTY: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """Return the input of the output projection, (B, T, H C). A subclass may gate it by the attention's input."""
        return mixed_BTY


def residual_gain(config: TransformerConfig) -> float:
    """Return the initial gain of the residual output projections: see `initialization`.

    With 1 / sqrt(2L) the sum of all 2L residual branches has unit variance (GPT-2, section 2.3). With 0 every block is
    initialized as the identity (Fixup, arXiv:1901.09321).
    """
    return {"scaled": (2 * config.num_layers) ** -0.5, "plain": 1.0, "zero": 0.0}[config.initialization]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}


class FeedForward(nn.Module):
    """Position-wise feed-forward (arXiv:1706.03762, section 3.3; SwiGLU: arXiv:2002.05202, equation 6)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D, F = self.config.width, self.config.ff_width

        fused = fused_projections(self, FUSED[1], (F, F), x_BTD)

        def up(name: str) -> jax.Array:
            return fused[name] if name in fused else project(self, name, x_BTD, F)

        if self.config.feed_forward == "swiglu":
            h_BTF = jax.nn.silu(up("gate")) * up("up")
        else:
            h_BTF = ACTIVATIONS[self.config.feed_forward](up("up"))
        return project(self, "down", h_BTF, D, residual_gain(self.config))
