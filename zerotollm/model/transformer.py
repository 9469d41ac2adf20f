"""The decoder-only Transformer, from token ids to logits; `encoder_decoder.py` has the other one, of the same parts.

Axes, in the order they lie in a name such as `scores_BHTS`:
    B batch        T target (query) position    S source (key) position    D model width    F feed-forward width
    H query heads  K key/value heads            C head width               V vocabulary     L layer

With the defaults of `TransformerConfig` (RMSNorm, RoPE, SwiGLU, QK-norm, GQA) this is exactly the architecture
of Qwen3 (arXiv:2505.09388), so that trained weights can be written in that format.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.model.chunked_attention import AttentionMask
from zerotollm.model.compute_config import PLAIN, ComputeConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import (
    Attention,
    Dropout,
    FeedForward,
    KVCache,
    Norm,
    fan_in_normal,
    linear,
    sinusoid,
)
from zerotollm.model.stack import rematerialized, scan_layers
from zerotollm.sharding.constraints import ROWS, constrain


def causal_mask(segments_BT: jax.Array | None, length: int) -> jax.Array:
    """True where query t may see key s: s <= t and, where segments are given, the same document.

    Returns (B, T, T), or (1, T, T) without segments.
    """
    mask_TS = jnp.tril(jnp.ones((length, length), bool))
    if segments_BT is None:
        return mask_TS[None]
    return mask_TS[None] & (segments_BT[:, :, None] == segments_BT[:, None, :])


def document_positions(segments_BT: jax.Array) -> jax.Array:
    """Position of each token since its segment began: [1, 1, 2, 2, 2] -> [0, 1, 0, 1, 2]. Returns (B, T) int32."""
    index_T = jnp.arange(segments_BT.shape[1])[None]
    starts = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    return index_T - jax.lax.cummax(jnp.where(starts, index_T, 0), axis=1)


class EncoderOutput(NamedTuple):
    """What a decoder's cross attention reads of the source."""

    mask_BS: jax.Array
    """False at padding"""
    encoded_BSD: jax.Array | None
    """the encoder's output; None where its keys and values are there already"""
    known: tuple[KVCache, ...] | None = None
    """keys and values of each layer, from an earlier call"""


class Block(nn.Module):
    """Attention, in a decoder with an encoder cross attention, and feed-forward, each with its norm and its residual
    (arXiv:1706.03762, figure 1)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BTS: jax.Array | AttentionMask,
        positions_BT: jax.Array,
        *,
        deterministic: bool,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
        memory: EncoderOutput | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """Returns the output and the keys and values of self attention and, with a memory of one layer, of cross
        attention. A memory of fewer rows than `x_BTD` is each one's for as many rows side by side, as in a beam."""
        c = self.config
        kv: list[KVCache] = []

        def attention(h_BTD: jax.Array) -> jax.Array:
            out_BTD, new = Attention(c, name="attention")(
                h_BTD, mask_BTS, positions_BT, cache=cache, slot=slot
            )
            kv.append(new)
            return out_BTD

        def cross_attention(h_BTD: jax.Array) -> jax.Array:
            # Rows that share a source are further queries to the same keys: nothing needs to be copied.
            rows = memory.mask_BS.shape[0]
            positions_RX = jnp.broadcast_to(positions_BT, h_BTD.shape[:2]).reshape(rows, -1)
            out_BTD, new = Attention(c, name="cross_attention")(
                h_BTD.reshape(rows, -1, c.width),
                memory.mask_BS[:, None],
                positions_RX,
                context_BSD=memory.encoded_BSD,
                known=memory.known[0] if memory.known else None,
            )
            kv.append(new)
            return out_BTD.reshape(h_BTD.shape)

        for name, sublayer in (
            ("attention", attention),
            *([("cross_attention", cross_attention)] if memory else []),
            ("feed_forward", FeedForward(c, name="feed_forward")),
        ):
            norm = Norm(c, name=f"{name}_norm")
            dropout = partial(Dropout(c.dropout), deterministic=deterministic)
            if c.norm_position == "pre":
                x_BTD = x_BTD + dropout(sublayer(norm(x_BTD)))
            else:
                x_BTD = norm(x_BTD + dropout(sublayer(x_BTD)))
        self.sow("intermediates", "x_BTD", x_BTD)
        return constrain(x_BTD, ROWS), tuple(kv)


def run_blocks(
    config: TransformerConfig,
    num_layers: int,
    x_BTD: jax.Array,
    mask_BTS: jax.Array,
    positions_BT: jax.Array,
    *,
    deterministic: bool,
    caches: tuple[KVCache, ...] | None = None,
    slot: jax.Array | int = 0,
    memory: EncoderOutput | None = None,
) -> tuple[jax.Array, list[tuple[KVCache, ...]]]:
    """Blocks `layer_0`, `layer_1`, ... of the module that calls, and its `final_norm` where norms come first.

    Returns the output and, of every block, what it returns beside.
    """
    kept = []
    for i in range(num_layers):
        x_BTD, kv = Block(config, name=f"layer_{i}")(
            x_BTD,
            mask_BTS,
            positions_BT,
            deterministic=deterministic,
            cache=None if caches is None else caches[i],
            slot=slot,
            memory=memory and memory._replace(known=memory.known and memory.known[i : i + 1]),
        )
        kept.append(kv)
    if config.norm_position == "pre":
        x_BTD = Norm(config, name="final_norm")(x_BTD)
    return x_BTD, kept


def uses_remat_or_scan(module: nn.Module) -> bool:
    """Whether `module.compute` wants `remat_or_scan_blocks`, which cannot make parameters."""
    compute = module.compute
    return (compute.scan_layers or compute.remat != "none") and not module.is_initializing()


def remat_or_scan_blocks(
    module: nn.Module,
    num_layers: int,
    x_BTD: jax.Array,
    mask_BTS: jax.Array | AttentionMask,
    positions_BT: jax.Array,
    *,
    deterministic: bool,
    memory: EncoderOutput | None = None,
) -> jax.Array:
    """What `run_blocks` returns first, without caches, as `module.compute` says: rematerialized, or in a loop."""
    c, compute = module.config, module.compute
    if compute.scan_layers:

        def layer(params, x_BTD, key):
            rngs = None if key is None else {"dropout": key}
            block = partial(Block(c, parent=None).apply, {"params": params}, rngs=rngs)
            return block(x_BTD, mask_BTS, positions_BT, deterministic=key is None, memory=memory)[0]

        layers = [module.variables["params"][f"layer_{i}"] for i in range(num_layers)]
        key = None if deterministic or not c.dropout else module.make_rng("dropout")
        x_BTD = scan_layers(layer, layers, x_BTD, key=key, remat=compute.remat)
    else:

        def layer(block, x_BTD):
            return block(x_BTD, mask_BTS, positions_BT, deterministic=deterministic, memory=memory)[0]

        run = rematerialized(layer, compute.remat)
        for i in range(num_layers):
            x_BTD = run(Block(c, name=f"layer_{i}"), x_BTD)
    return Norm(c, name="final_norm")(x_BTD) if c.norm_position == "pre" else x_BTD


def add_positions(module: nn.Module, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Sinusoidal or learned positions added to embeddings; a learned table is the parameter `positions` of `module`."""
    c = module.config
    if c.position == "sinusoidal":
        x_BTD += sinusoid(positions_BT, c.width, c.sinusoid_layout)
    elif c.position == "learned":
        table_TD = module.param("positions", nn.initializers.normal(0.02), (c.max_length, c.width))
        x_BTD += table_TD[positions_BT]
    module.sow("intermediates", "entering_BTD", x_BTD)  # the first block, but for dropout
    return x_BTD


def embedding_initializer(config: TransformerConfig) -> nn.initializers.Initializer:
    """As a head, a table of standard deviation 1 would begin with logits of sqrt(D): sure, and wrong."""
    return nn.initializers.normal(config.width**-0.5 if config.tie_embeddings else 1.0)


def head_initializer(config: TransformerConfig) -> nn.initializers.Initializer:
    """Near zero: the first predictions are uniform, and no step is spent on unlearning chance."""
    return fan_in_normal(config.width, 0.02)


def head_logits(
    config: TransformerConfig, x_BTD: jax.Array, head_DV: jax.Array, bias_V: jax.Array | None = None
) -> jax.Array:
    """Logits (B, T, V) in float32."""
    logits_BTV = constrain(linear(x_BTD, head_DV, bias_V, out_type=jnp.float32), ROWS, None, "tensor")
    if config.logit_soft_cap:
        logits_BTV = config.logit_soft_cap * jnp.tanh(logits_BTV / config.logit_soft_cap)
    return logits_BTV


class TokenShift(nn.Module):
    """Adds to each token's embedding those of the N before it, each feature with a weight of its own.

    A causal depthwise convolution (token shift of RWKV, arXiv:2305.13048, section 3; convolutions of Primer,
    arXiv:2109.08668), here on the embedding alone: what the last few tokens are need not first be learned by
    attention.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, before_BND: jax.Array, since_start_BT: jax.Array) -> jax.Array:
        """`before_BND` lies in front of `x_BTD`; nothing is taken from before the start of a text."""
        N, T = self.config.token_shift, x_BTD.shape[1]
        weights_ND = self.param("weights", nn.initializers.constant(0.3), (N, x_BTD.shape[-1]))
        longer_BSD = jnp.concatenate([before_BND, x_BTD], axis=1)
        for n in range(1, N + 1):
            earlier_BTD = jax.lax.slice_in_dim(longer_BSD, N - n, N - n + T, axis=1)
            x_BTD += weights_ND[n - 1][None, None] * earlier_BTD * (since_start_BT >= n)[..., None]
        return x_BTD


class Transformer(nn.Module):
    """Token ids to logits over the next token. `config` and `compute` have been through their `resolve`."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        *,
        deterministic: bool = True,
        positions_BT: jax.Array | None = None,
        mask_BTS: jax.Array | None = None,
        caches: tuple[KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        before_BN: jax.Array | None = None,
        with_logits: bool = True,
    ) -> jax.Array | tuple[jax.Array, tuple[KVCache, ...]] | tuple[jax.Array, jax.Array]:
        """Logits (B, T, V) in float32; with `caches`, the pair (logits, updated caches).

        With `num_classes`, V are those: what is read of a text is the row of its last token.

        `segments_BT` numbers the documents packed in each row: attention then stays inside a document and
        positions start again at each. Without it a row is one text. With `caches` (one per layer), pass
        `positions_BT` and `mask_BTS` over the cache's slots too; new keys and values are written from `slot` on,
        which may be one for each row, (B,).
        `before_BN` are the N = `token_shift` tokens in front of `tokens_BT`, where there are any.
        Not `with_logits`, the pair (what the head reads, (B, T, D); the head, (D, V)) without the soft cap.
        Dropout, where `deterministic` is False, draws from the "dropout" stream.
        """
        c = self.config
        if positions_BT is None:
            if (
                segments_BT is None or c.position == "rope"
            ):  # rope sees differences only: no restart is needed
                positions_BT = jnp.arange(tokens_BT.shape[1])[None]
            else:
                positions_BT = document_positions(segments_BT)
        if mask_BTS is None and self.compute.attention == "plain":
            mask_BTS = causal_mask(segments_BT, tokens_BT.shape[1])
        elif mask_BTS is None:
            mask_BTS = AttentionMask(segments_BT, segments_BT, causal=True, kernel=self.compute.attention)

        embedding_VD = self.param("embedding", embedding_initializer(c), (c.vocab_size, c.width))
        x_BTD = embedding_VD[tokens_BT]
        self.sow("intermediates", "embedded_BTD", x_BTD)  # of the token alone: no shift, no position
        if c.token_shift:
            if before_BN is None:
                before_BN = jnp.zeros((tokens_BT.shape[0], c.token_shift), tokens_BT.dtype)
            since_start_BT = positions_BT if segments_BT is None else document_positions(segments_BT)
            x_BTD = TokenShift(c, name="token_shift")(x_BTD, embedding_VD[before_BN], since_start_BT)
        if c.embedding_scale:
            x_BTD *= c.width**0.5
        x_BTD = add_positions(self, x_BTD, positions_BT).astype(self.compute.precision)
        x_BTD = constrain(x_BTD, ROWS)
        x_BTD = Dropout(c.dropout)(x_BTD, deterministic=deterministic)
        if caches is None and uses_remat_or_scan(self):
            how = {"deterministic": deterministic}
            x_BTD, kept = remat_or_scan_blocks(self, c.num_layers, x_BTD, mask_BTS, positions_BT, **how), []
        else:
            x_BTD, kept = run_blocks(
                c,
                c.num_layers,
                x_BTD,
                mask_BTS,
                positions_BT,
                deterministic=deterministic,
                caches=caches,
                slot=slot,
            )
        if c.num_classes:
            head_DV = self.param("classifier", head_initializer(c), (c.width, c.num_classes))
        elif c.tie_embeddings:
            head_DV = embedding_VD.T
        else:
            head_DV = self.param("head", head_initializer(c), (c.width, c.vocab_size))
        self.sow("intermediates", "final_BTD", x_BTD)
        result = head_logits(c, x_BTD, head_DV) if with_logits else (x_BTD, head_DV)
        return result if caches is None else (result, tuple(own for (own,) in kept))
