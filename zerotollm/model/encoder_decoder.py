"""The Transformer of the paper: an encoder reads the source, a decoder writes the target (arXiv:1706.03762, figure 1).

Every part is the decoder-only model's: see `transformer.py`, also for the shape letters. Source and target share one
vocabulary and one embedding (section 3.4); padding lies on the right.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.model.compute_config import PLAIN, ComputeConfig
from zerotollm.model.config import BIASED, TransformerConfig
from zerotollm.model.layers import Dropout, KVCache, linear, source_keys_values
from zerotollm.model.transformer import (
    EncoderOutput,
    TokenShift,
    add_positions,
    causal_mask,
    embedding_initializer,
    head_initializer,
    head_logits,
    remat_or_scan_blocks,
    run_blocks,
    uses_remat_or_scan,
)
from zerotollm.sharding.constraints import ROWS, constrain


class Encoder(nn.Module):
    """Embeddings of a source to what the decoder reads: every token sees every other that is not padding."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`mask_BS` is False at padding, whose output means nothing. Returns (B, S, D)."""
        c = self.config
        positions_BS = jnp.arange(x_BSD.shape[1])[None]
        x_BSD = shifted(self, x_BSD, positions_BS)
        x_BSD = add_positions(self, x_BSD, positions_BS).astype(self.compute.precision)
        x_BSD = Dropout(c.dropout)(x_BSD, deterministic=deterministic)
        read, how = (x_BSD, mask_BS[:, None], positions_BS), {"deterministic": deterministic}
        if uses_remat_or_scan(self):
            return remat_or_scan_blocks(self, c.encoder_layers, *read, **how)
        return run_blocks(c, c.encoder_layers, *read, **how)[0]


class Decoder(nn.Module):
    """Embeddings of a target and a memory of its source to the states that the head reads."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        memory: EncoderOutput,
        *,
        deterministic: bool = True,
        positions_BT: jax.Array | None = None,
        mask_BTS: jax.Array | None = None,
        caches: tuple[KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        before_BTND: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...], tuple[KVCache, ...]]:
        """Returns the states (B, T, D) and the keys and values of each layer, of self and of cross attention; without
        caches, none of a `compute` that computes again or in a loop.

        `before_BTND` are embeddings of the N = `token_shift` tokens in front of each, where what lies before it in
        `x_BTD` is not that."""
        c = self.config
        if positions_BT is None:
            positions_BT = jnp.arange(x_BTD.shape[1])[None]
        if mask_BTS is None:
            mask_BTS = causal_mask(None, x_BTD.shape[1])
        x_BTD = shifted(self, x_BTD, positions_BT, before_BTND)
        x_BTD = add_positions(self, x_BTD, positions_BT).astype(self.compute.precision)
        x_BTD = Dropout(c.dropout)(x_BTD, deterministic=deterministic)
        read, how = (x_BTD, mask_BTS, positions_BT), {"deterministic": deterministic, "memory": memory}
        if caches is None and uses_remat_or_scan(self):
            return remat_or_scan_blocks(self, c.num_layers, *read, **how), (), ()
        x_BTD, kept = run_blocks(c, c.num_layers, *read, **how, caches=caches, slot=slot)
        return x_BTD, tuple(own for own, _ in kept), tuple(cross for _, cross in kept)


class EncoderDecoder(nn.Module):
    """Source and target ids to logits over the next target token. `config` and `compute` have been through their
    `resolve`."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN

    def setup(self):
        c = self.config
        self.embedding = self.param("embedding", embedding_initializer(c), (c.vocab_size, c.width))
        if c.num_classes:
            self.classifier = self.param("classifier", head_initializer(c), (c.width, c.num_classes))
        elif not c.tie_embeddings:
            self.head = self.param("head", head_initializer(c), (c.width, c.vocab_size))
        biased = "head" in BIASED[c.biases]
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,)) if biased else None
        self.encoder = Encoder(c, self.compute)
        self.decoder = Decoder(c, self.compute)

    def classify(
        self,
        sources_BS: jax.Array,
        source_mask_BS: jax.Array,
        *,
        deterministic: bool = True,
        with_logits: bool = True,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Logits (B, S, `num_classes`) in float32 of the mean of what the encoder makes of each source's tokens, the
        same at all places; not `with_logits`, the pair of these means, (B, S, D), and the classifier. Raises where the
        configuration has no classes."""
        encoded_BSD = self.encoder(self._embed(sources_BS), source_mask_BS, deterministic=deterministic)
        share_BS = source_mask_BS / jnp.maximum(jnp.sum(source_mask_BS, axis=1, keepdims=True), 1)
        mean_B1D = jnp.einsum("bsd,bs->bd", encoded_BSD, share_BS)[:, None]
        if not with_logits:
            return jnp.broadcast_to(mean_B1D, encoded_BSD.shape), self.classifier
        logits_B1K = linear(mean_B1D, self.classifier, out_type=jnp.float32)
        return jnp.broadcast_to(logits_B1K, (*sources_BS.shape, self.config.num_classes))

    def __call__(
        self,
        sources_BS: jax.Array,
        source_mask_BS: jax.Array,
        tokens_BT: jax.Array,
        *,
        deterministic: bool = True,
        with_logits: bool = True,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Logits (B, T, V) in float32 of the token after each of `tokens_BT`, which begins with bos.

        `source_mask_BS` is False at padding. Dropout, where `deterministic` is False, draws from "dropout".
        Not `with_logits`, the pair (what the head reads, (B, T, D); the head, (D, V)) without the soft cap; of a head
        with a bias, that is one more row of it, and a feature that is 1.
        """
        memory = self.encode(sources_BS, source_mask_BS, deterministic=deterministic)
        if with_logits:
            return self.decode(tokens_BT, memory, deterministic=deterministic)[0]
        x_BTD, _, _ = self.decoder(self._embed(tokens_BT), memory, deterministic=deterministic)
        head_DV = self._head()
        if self.head_bias is not None:
            x_BTD = jnp.concatenate([x_BTD, jnp.ones_like(x_BTD[..., :1])], axis=-1)
            head_DV = jnp.concatenate([head_DV, self.head_bias[None]])
        return x_BTD, head_DV

    def encode(
        self, sources_BS: jax.Array, source_mask_BS: jax.Array, *, deterministic: bool = True
    ) -> EncoderOutput:
        """What `decode` reads of the sources."""
        encoded_BSD = self.encoder(self._embed(sources_BS), source_mask_BS, deterministic=deterministic)
        return EncoderOutput(source_mask_BS, encoded_BSD)

    def precompute_kv(self, sources_BS: jax.Array, source_mask_BS: jax.Array) -> EncoderOutput:
        """The same for many calls of `decode`: keys and values of the sources instead of what they come from."""
        memory = self.encode(sources_BS, source_mask_BS)
        layers = [self.decoder.variables["params"][f"layer_{i}"] for i in range(self.config.num_layers)]
        known = (
            source_keys_values(self.config, layer["cross_attention"], memory.encoded_BSD) for layer in layers
        )
        return EncoderOutput(source_mask_BS, None, tuple(known))

    def decode(
        self,
        tokens_BT: jax.Array,
        memory: EncoderOutput,
        *,
        deterministic: bool = True,
        positions_BT: jax.Array | None = None,
        mask_BTS: jax.Array | None = None,
        caches: tuple[KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        before_BTN: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...], tuple[KVCache, ...]]:
        """Logits (B, T, V) and the keys and values of each layer, of self attention and of cross attention.

        With `caches` of self attention, pass `positions_BT` and `mask_BTS` over their slots too; new keys and
        values are written from `slot` on. Rows of `tokens_BT` may be a multiple of the memory's: each source is
        then that of as many rows side by side. `before_BTN` are the N = `token_shift` tokens in front of each of
        `tokens_BT`, where these are not one text.
        """
        x_BTD, own, cross = self.decoder(
            self._embed(tokens_BT),
            memory,
            deterministic=deterministic,
            positions_BT=positions_BT,
            mask_BTS=mask_BTS,
            caches=caches,
            slot=slot,
            before_BTND=None if before_BTN is None else self._embed(before_BTN),
        )
        return head_logits(self.config, x_BTD, self._head(), self.head_bias), own, cross

    def _head(self) -> jax.Array:
        """(D, V)."""
        return self.embedding.T if self.config.tie_embeddings else self.head

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        """Of any number of axes after the rows."""
        x_BTD = constrain(self.embedding[tokens_BT], ROWS)
        return x_BTD * self.config.width**0.5 if self.config.embedding_scale else x_BTD


def shifted(
    module: nn.Module, x_BTD: jax.Array, positions_BT: jax.Array, before_BTND: jax.Array | None = None
) -> jax.Array:
    """Embeddings (B, T, D) after the token shift of `module`'s side, if its configuration has one (see `TokenShift`):
    along `x_BTD`, which begins a text, or, where `before_BTND` is given, with those as the N tokens before each,
    the nearest last. `positions_BT` tell where a text began; its axes may be 1."""
    N = module.config.token_shift
    if not N:
        return x_BTD
    shift = TokenShift(module.config, name="token_shift")
    B, T, D = x_BTD.shape
    if before_BTND is None:
        return shift(x_BTD, jnp.zeros((B, N, D), x_BTD.dtype), positions_BT)
    positions_X1 = jnp.broadcast_to(positions_BT, (B, T)).reshape(B * T, 1)
    return shift(x_BTD.reshape(B * T, 1, D), before_BTND.reshape(B * T, N, D), positions_X1).reshape(B, T, D)
