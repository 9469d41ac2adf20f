"""The decoder-only Transformer, from token ids to logits.

Axes, in the order they lie in a name such as `scores_BHTS`:
    B batch        T target (query) position    S source (key) position    D model width    F feed-forward width
    H query heads  K key/value heads            C head width               V vocabulary     L layer

With the defaults of `TransformerConfig` (RMSNorm, RoPE, SwiGLU, QK-norm, GQA) this is exactly the architecture
of Qwen3 (arXiv:2505.09388), so that trained weights can be written in that format.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.compute.attention import Sight
from zerotollm.compute.config import PLAIN, ComputeConfig
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


class Block(nn.Module):
    """Attention and feed-forward, each with its norm and its residual (arXiv:1706.03762, figure 1)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BTS: jax.Array | Sight,
        positions_BT: jax.Array,
        *,
        deterministic: bool,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        c = self.config
        kv: list[KVCache] = []

        def attention(h_BTD: jax.Array) -> jax.Array:
            out_BTD, new = Attention(c, name="attention")(
                h_BTD, mask_BTS, positions_BT, cache=cache, slot=slot
            )
            kv.append(new)
            return out_BTD

        for name, sublayer in (
            ("attention", attention),
            ("feed_forward", FeedForward(c, name="feed_forward")),
        ):
            norm = Norm(c, name=f"{name}_norm")
            dropout = partial(Dropout(c.dropout), deterministic=deterministic)
            if c.norm_position == "pre":
                x_BTD = x_BTD + dropout(sublayer(norm(x_BTD)))
            else:
                x_BTD = norm(x_BTD + dropout(sublayer(x_BTD)))
        return x_BTD, kv[0]


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

        `segments_BT` numbers the documents packed in each row: attention then stays inside a document and
        positions start again at each. Without it a row is one text. With `caches` (one per layer), pass
        `positions_BT` and `mask_BTS` over the cache's slots too; new keys and values are written from `slot` on.
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
            mask_BTS = Sight(segments_BT, segments_BT, causal=True, kernel=self.compute.attention)

        # As a head, a table of standard deviation 1 would begin with logits of sqrt(D): sure, and wrong.
        deviation = c.width**-0.5 if c.tie_embeddings else 1.0
        embedding_VD = self.param("embedding", nn.initializers.normal(deviation), (c.vocab_size, c.width))
        x_BTD = embedding_VD[tokens_BT]
        if c.token_shift:
            if before_BN is None:
                before_BN = jnp.zeros((tokens_BT.shape[0], c.token_shift), tokens_BT.dtype)
            since_start_BT = positions_BT if segments_BT is None else document_positions(segments_BT)
            x_BTD = TokenShift(c, name="token_shift")(x_BTD, embedding_VD[before_BN], since_start_BT)
        if c.embedding_scale:
            x_BTD *= c.width**0.5
        if c.position == "sinusoidal":
            x_BTD += sinusoid(positions_BT, c.width)
        elif c.position == "learned":
            table_TD = self.param("positions", nn.initializers.normal(0.02), (c.max_length, c.width))
            x_BTD += table_TD[positions_BT]
        x_BTD = x_BTD.astype(self.compute.precision)
        x_BTD = Dropout(c.dropout)(x_BTD, deterministic=deterministic)

        new_caches = []
        trains = caches is None and not self.is_initializing()
        if trains and self.compute.scan_layers:

            def layer(params, x_BTD, key):
                rngs = None if key is None else {"dropout": key}
                block = partial(Block(c, parent=None).apply, {"params": params}, rngs=rngs)
                return block(x_BTD, mask_BTS, positions_BT, deterministic=key is None)[0]

            layers = [self.variables["params"][f"layer_{i}"] for i in range(c.num_layers)]
            key = None if deterministic or not c.dropout else self.make_rng("dropout")
            x_BTD = scan_layers(layer, layers, x_BTD, key=key, remat=self.compute.remat)
        elif trains and self.compute.remat != "none":
            run = rematerialized(
                lambda block, x_BTD: block(x_BTD, mask_BTS, positions_BT, deterministic=deterministic)[0],
                self.compute.remat,
            )
            for i in range(c.num_layers):
                x_BTD = run(Block(c, name=f"layer_{i}"), x_BTD)
        else:
            for i in range(c.num_layers):
                x_BTD, kv = Block(c, name=f"layer_{i}")(
                    x_BTD,
                    mask_BTS,
                    positions_BT,
                    deterministic=deterministic,
                    cache=None if caches is None else caches[i],
                    slot=slot,
                )
                new_caches.append(kv)
        if c.norm_position == "pre":
            x_BTD = Norm(c, name="final_norm")(x_BTD)

        if c.tie_embeddings:
            head_DV = embedding_VD.T
        else:
            # Near zero: the first predictions are uniform, and no step is spent on unlearning chance.
            head_DV = self.param("head", fan_in_normal(c.width, 0.02), (c.width, c.vocab_size))
        if not with_logits:
            return x_BTD, head_DV
        logits_BTV = linear(x_BTD, head_DV, jnp.float32)
        if c.logit_soft_cap:
            logits_BTV = c.logit_soft_cap * jnp.tanh(logits_BTV / c.logit_soft_cap)
        return logits_BTV if caches is None else (logits_BTV, tuple(new_caches))
