"""The decoder-only Transformer, from token ids to the input of its head; `encoder_decoder.py` uses the same parts.

Axes, in the order of the letters in a name such as `scores_BHTS`:
    B batch        T target (query) position    S source (key) position    D model width    F feed-forward width
    H query heads  K key/value heads            C head width               V vocabulary     L layer

With the defaults of `TransformerConfig` (RMSNorm, RoPE, SwiGLU, QK-norm, GQA) this is exactly the architecture of Qwen3
(arXiv:2505.09388): trained weights can be exported in that format.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.model.blocks import Block, run_blocks
from zerotollm.model.chunked_attention import AttentionMask
from zerotollm.model.compute_config import PLAIN, ComputeConfig
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Dropout, KVCache, fan_in_normal, linear, sinusoid
from zerotollm.sharding.constraints import ROWS, constrain

Inputs = Mapping[str, jax.Array]
"""A net's part of a batch, all (B, T) or (B, S): "inputs" token ids; "segments", the document number of each token, if
attention stays inside documents; for an encoder "sources" token ids and "source_mask", False at padding."""


class Readout(NamedTuple):
    """The final hidden states and the head: all that a loss needs, before the logits are computed."""

    x_BTD: jax.Array
    """final hidden states; T is 1 if one vector stands for all positions"""
    head_DV: jax.Array
    bias_V: jax.Array | None = None
    soft_cap: float = 0.0
    """logits become cap x tanh(logits / cap); 0: unchanged"""
    extra: Mapping[str, jax.Array] | None = None
    """what a model of one's own hands to an objective of its own"""

    def logits(self) -> jax.Array:
        """Return the logits, (B, T, V) in float32."""
        with jax.named_scope("head"):
            logits_BTV = linear(self.x_BTD, self.head_DV, self.bias_V, out_type=jnp.float32)
            logits_BTV = constrain(logits_BTV, ROWS, None, "tensor")
            if self.soft_cap:
                logits_BTV = self.soft_cap * jnp.tanh(logits_BTV / self.soft_cap)
            return logits_BTV


def causal_mask(segments_BT: jax.Array | None, length: int) -> jax.Array:
    """Return True where query t may attend to key s: s <= t and, with segments, in the same document.

    The shape is (B, T, T), or (1, T, T) without segments.
    """
    mask_TS = jnp.tril(jnp.ones((length, length), bool))
    if segments_BT is None:
        return mask_TS[None]
    return mask_TS[None] & (segments_BT[:, :, None] == segments_BT[:, None, :])


def document_positions(segments_BT: jax.Array) -> jax.Array:
    """Return the position of each token in its document: [1, 1, 2, 2, 2] -> [0, 1, 0, 1, 2]; (B, T) int32."""
    index_T = jnp.arange(segments_BT.shape[1])[None]
    starts = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    return index_T - jax.lax.cummax(jnp.where(starts, index_T, 0), axis=1)


def add_positions(module: nn.Module, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Add sinusoidal or learned positions; a learned table is the parameter `positions` of `module`."""
    c = module.config
    if c.position == "sinusoidal":
        x_BTD += sinusoid(positions_BT, c.width, c.sinusoid_layout)
    elif c.position == "learned":
        table_TD = module.param("positions", nn.initializers.normal(0.02), (c.max_length, c.width))
        x_BTD += table_TD[positions_BT]
    module.sow("intermediates", "entering_BTD", x_BTD)  # input of the first block, before dropout
    return x_BTD


def embedding_initializer(config: TransformerConfig) -> nn.initializers.Initializer:
    """Return a normal with std 1, or 1/sqrt(D) for a tied head, whose logits would otherwise have std sqrt(D)."""
    return nn.initializers.normal(config.width**-0.5 if config.tie_embeddings else 1.0)


def head_initializer(config: TransformerConfig) -> nn.initializers.Initializer:
    """Return a normal near zero: the first predictions are uniform, and no step is spent on unlearning noise."""
    return fan_in_normal(config.width, 0.02)


class TokenShift(nn.Module):
    """Add to each embedding those of the N tokens before it, with a learned weight per feature.

    A causal depthwise convolution (token shift of RWKV, arXiv:2305.13048, section 3; convolutions of Primer,
    arXiv:2109.08668) on the embeddings only: attention need not learn first which tokens came last.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, before_BND: jax.Array, since_start_BT: jax.Array) -> jax.Array:
        """Return (B, T, D). `before_BND` precede `x_BTD`; nothing is added from before the start of a text."""
        N, T = self.config.token_shift, x_BTD.shape[1]
        weights_ND = self.param("weights", nn.initializers.constant(0.3), (N, x_BTD.shape[-1]))
        longer_BSD = jnp.concatenate([before_BND, x_BTD], axis=1)
        for n in range(1, N + 1):
            earlier_BTD = jax.lax.slice_in_dim(longer_BSD, N - n, N - n + T, axis=1)
            x_BTD += weights_ND[n - 1][None, None] * earlier_BTD * (since_start_BT >= n)[..., None]
        return x_BTD


class Transformer(nn.Module):
    """Token ids to the readout of each position. `config` and `compute` are resolved."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN
    block: Callable[..., nn.Module] = Block
    """called like `Block`; another class replaces every block"""

    def __call__(self, inputs: Inputs, *, deterministic: bool = True) -> Readout:
        """Return the readout of the batch: the next token at each position, or the label at the last one.

        Without "segments" a row is one text. Dropout, unless `deterministic`, draws from the "dropout" stream.
        """
        tokens_BT, segments_BT = inputs["inputs"], inputs.get("segments")
        positions_BT = since_start_BT = jnp.arange(tokens_BT.shape[1])[None]
        if segments_BT is not None:
            since_start_BT = document_positions(segments_BT)
            if self.config.position != "rope":  # rope depends on differences only: no restart is needed
                positions_BT = since_start_BT
        if self.compute.attention == "plain":
            mask_BTS = causal_mask(segments_BT, tokens_BT.shape[1])
        else:
            kernel = "cudnn" if self.compute.attention == "cudnn" else "chunked"
            mask_BTS = AttentionMask(segments_BT, segments_BT, causal=True, kernel=kernel)
        readout, _ = self.forward(
            tokens_BT, positions_BT, mask_BTS, since_start_BT, deterministic=deterministic
        )
        return readout

    def decode(
        self,
        tokens_BT: jax.Array,
        caches: tuple[KVCache, ...],
        *,
        positions_BT: jax.Array,
        mask_BTS: jax.Array,
        slot: jax.Array | int,
        before_BN: jax.Array | None = None,
    ) -> tuple[Readout, tuple[KVCache, ...]]:
        """Return the readout of tokens that follow the KV caches, and the caches with them.

        `mask_BTS` is over the cache's slots. New keys and values are written from `slot` on, which is a number or (B,).
        `before_BN` are the N = `token_shift` tokens before `tokens_BT`, if any.
        """
        readout, kv = self.forward(
            tokens_BT, positions_BT, mask_BTS, positions_BT, caches=caches, slot=slot, before_BN=before_BN
        )
        return readout, tuple(new for (new,) in kv)

    @nn.compact
    def forward(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask_BTS: jax.Array | AttentionMask,
        since_start_BT: jax.Array,
        *,
        deterministic: bool = True,
        caches: tuple[KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        before_BN: jax.Array | None = None,
    ) -> tuple[Readout, list[tuple[KVCache, ...]]]:
        """Return the readout of tokens, and the keys and values of each block. A subclass may run blocks otherwise."""
        x_BTD, embedding_VD = self.embed(
            tokens_BT, positions_BT, since_start_BT, before_BN, deterministic=deterministic
        )
        x_BTD, kv = run_blocks(
            self,
            self.config.num_layers,
            x_BTD,
            mask_BTS,
            positions_BT,
            deterministic=deterministic,
            caches=caches,
            slot=slot,
        )
        return self.read_out(x_BTD, embedding_VD), kv

    def embed(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        since_start_BT: jax.Array,
        before_BN: jax.Array | None,
        *,
        deterministic: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the input of the first block (B, T, D), and the embedding table."""
        c = self.config
        embedding_VD = self.param("embedding", embedding_initializer(c), (c.vocab_size, c.width))
        x_BTD = embedding_VD[tokens_BT]
        self.sow("intermediates", "embedded_BTD", x_BTD)  # before token shift and positions
        if c.token_shift:
            if before_BN is None:
                before_BN = jnp.zeros((tokens_BT.shape[0], c.token_shift), jnp.int32)
            x_BTD = TokenShift(c, name="token_shift")(x_BTD, embedding_VD[before_BN], since_start_BT)
        if c.embedding_scale:
            x_BTD *= c.width**0.5
        x_BTD = add_positions(self, x_BTD, positions_BT).astype(self.compute.precision)
        x_BTD = constrain(x_BTD, ROWS)
        return Dropout(c.dropout)(x_BTD, deterministic=deterministic), embedding_VD

    def read_out(self, x_BTD: jax.Array, embedding_VD: jax.Array) -> Readout:
        """Return the readout of the final hidden states."""
        c = self.config
        if c.num_classes:
            head_DV = self.param("classifier", head_initializer(c), (c.width, c.num_classes))
        elif c.tie_embeddings:
            head_DV = embedding_VD.T
        else:
            head_DV = self.param("head", head_initializer(c), (c.width, c.vocab_size))
        self.sow("intermediates", "final_BTD", x_BTD)
        return Readout(x_BTD, head_DV, soft_cap=c.logit_soft_cap)
