"""The encoder-decoder Transformer of arXiv:1706.03762, figure 1: the encoder reads the source, the decoder the target.

It uses the parts of the decoder-only model; `transformer.py` explains the shape letters. Source and target share one
vocabulary and one embedding (section 3.4). Padding is on the right.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.model.blocks import Block, EncoderOutput, run_blocks
from zerotollm.model.compute_config import PLAIN, ComputeConfig
from zerotollm.model.config import BIASED, TransformerConfig
from zerotollm.model.layers import Dropout, KVCache, source_keys_values
from zerotollm.model.transformer import (
    Inputs,
    Readout,
    TokenShift,
    add_positions,
    causal_mask,
    embedding_initializer,
    head_initializer,
)
from zerotollm.sharding.constraints import ROWS, constrain


class Encoder(nn.Module):
    """Embeddings of a source to encoder states; every token attends to every token that is not padding."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN
    block: Callable[..., nn.Module] = Block

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Return (B, S, D), undefined at padding, where `mask_BS` is False."""
        c = self.config
        positions_BS = jnp.arange(x_BSD.shape[1])[None]
        x_BSD = shift_tokens(self, x_BSD, positions_BS)
        x_BSD = add_positions(self, x_BSD, positions_BS).astype(self.compute.precision)
        x_BSD = Dropout(c.dropout)(x_BSD, deterministic=deterministic)
        mask_BTS = mask_BS[:, None]
        x_BSD, _ = run_blocks(
            self, c.encoder_layers, x_BSD, mask_BTS, positions_BS, deterministic=deterministic
        )
        return x_BSD


class Decoder(nn.Module):
    """Embeddings of a target, and the encoder's output, to the final hidden states."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN
    block: Callable[..., nn.Module] = Block

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        encoder: EncoderOutput,
        *,
        deterministic: bool = True,
        positions_BT: jax.Array | None = None,
        mask_BTS: jax.Array | None = None,
        caches: tuple[KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        before_BTND: jax.Array | None = None,
    ) -> tuple[jax.Array, list[tuple[KVCache, ...]]]:
        """Return the hidden states (B, T, D), and the keys and values of each layer's self and cross attention.

        `before_BTND` are the embeddings of the N = `token_shift` tokens before each, unless `x_BTD` is one text.
        """
        c = self.config
        if positions_BT is None:
            positions_BT = jnp.arange(x_BTD.shape[1])[None]
        if mask_BTS is None:
            mask_BTS = causal_mask(None, x_BTD.shape[1])
        x_BTD = shift_tokens(self, x_BTD, positions_BT, before_BTND)
        x_BTD = add_positions(self, x_BTD, positions_BT).astype(self.compute.precision)
        x_BTD = Dropout(c.dropout)(x_BTD, deterministic=deterministic)
        return run_blocks(
            self,
            c.num_layers,
            x_BTD,
            mask_BTS,
            positions_BT,
            deterministic=deterministic,
            caches=caches,
            slot=slot,
            encoder=encoder,
        )


class EncoderDecoder(nn.Module):
    """Source and target ids to the readout of each target token. `config` and `compute` are resolved."""

    config: TransformerConfig
    compute: ComputeConfig = PLAIN
    block: Callable[..., nn.Module] = Block
    """called like `Block`; another class replaces every block"""

    def setup(self) -> None:
        c = self.config
        self.embedding = self.param("embedding", embedding_initializer(c), (c.vocab_size, c.width))
        if c.num_classes:
            self.classifier = self.param("classifier", head_initializer(c), (c.width, c.num_classes))
        elif not c.tie_embeddings:
            self.head = self.param("head", head_initializer(c), (c.width, c.vocab_size))
        biased = "head" in BIASED[c.biases]
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (c.vocab_size,)) if biased else None
        self.encoder = Encoder(c, self.compute, self.block)
        self.decoder = Decoder(c, self.compute, self.block)

    def __call__(self, inputs: Inputs, *, deterministic: bool = True) -> Readout:
        """Return the readout of the token after each of "inputs", which start with bos, given the "sources".

        With `num_classes` there are no sources: "inputs" are encoded, and the readout, with T = 1, is of the label.
        Dropout, unless `deterministic`, draws from the "dropout" stream.
        """
        if self.config.num_classes:
            mask_BS = inputs["source_mask"]
            encoded_BSD = self.encoder(self._embed(inputs["inputs"]), mask_BS, deterministic=deterministic)
            share_BS = mask_BS / jnp.maximum(jnp.sum(mask_BS, axis=1, keepdims=True), 1)
            mean_BD = jnp.einsum("bsd,bs->bd", encoded_BSD, share_BS)
            return Readout(mean_BD[:, None], self.classifier, soft_cap=self.config.logit_soft_cap)
        encoder = self.encode(inputs["sources"], inputs["source_mask"], deterministic=deterministic)
        x_BTD, _ = self.decoder(self._embed(inputs["inputs"]), encoder, deterministic=deterministic)
        return self._readout(x_BTD)

    def encode(
        self, sources_BS: jax.Array, source_mask_BS: jax.Array, *, deterministic: bool = True
    ) -> EncoderOutput:
        """Return the encoder's output, for `decode`."""
        encoded_BSD = self.encoder(self._embed(sources_BS), source_mask_BS, deterministic=deterministic)
        return EncoderOutput(source_mask_BS, encoded_BSD)

    def precompute_kv(self, sources_BS: jax.Array, source_mask_BS: jax.Array) -> EncoderOutput:
        """Return precomputed cross-attention keys and values, for many calls of `decode`."""
        encoded_BSD = self.encoder(self._embed(sources_BS), source_mask_BS)
        layers = [self.decoder.variables["params"][f"layer_{i}"] for i in range(self.config.num_layers)]
        kv = (source_keys_values(self.config, layer["cross_attention"], encoded_BSD) for layer in layers)
        return EncoderOutput(source_mask_BS, None, tuple(kv))

    def decode(
        self,
        tokens_BT: jax.Array,
        caches: tuple[KVCache, ...],
        encoder: EncoderOutput,
        *,
        positions_BT: jax.Array,
        mask_BTS: jax.Array,
        slot: jax.Array | int,
        before_BTN: jax.Array | None = None,
    ) -> tuple[Readout, tuple[KVCache, ...]]:
        """Return the readout of tokens that follow the KV caches, and the caches with them.

        `mask_BTS` is over the cache's slots; new keys and values are written from `slot` on. `tokens_BT` may have a
        multiple of the encoder's rows: each source then serves consecutive rows. `before_BTN` are the
        N = `token_shift` tokens before each of `tokens_BT`.
        """
        x_BTD, kv = self.decoder(
            self._embed(tokens_BT),
            encoder,
            positions_BT=positions_BT,
            mask_BTS=mask_BTS,
            caches=caches,
            slot=slot,
            before_BTND=None if before_BTN is None else self._embed(before_BTN),
        )
        return self._readout(x_BTD), tuple(self_attention for self_attention, _ in kv)

    def _readout(self, x_BTD: jax.Array) -> Readout:
        head_DV = self.embedding.T if self.config.tie_embeddings else self.head
        return Readout(x_BTD, head_DV, self.head_bias, self.config.logit_soft_cap)

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        """Embed ids, which may have further axes."""
        x_BTD = constrain(self.embedding[tokens_BT], ROWS)
        return x_BTD * self.config.width**0.5 if self.config.embedding_scale else x_BTD


def shift_tokens(
    module: nn.Module, x_BTD: jax.Array, positions_BT: jax.Array, before_BTND: jax.Array | None = None
) -> jax.Array:
    """Apply the token shift of `module`, if its configuration has one. Return (B, T, D).

    `x_BTD` starts a text, unless `before_BTND` gives the N tokens before each, the nearest last. `positions_BT` count
    from the start of the text; its axes may be 1.
    """
    N = module.config.token_shift
    if not N:
        return x_BTD
    shift = TokenShift(module.config, name="token_shift")
    B, T, D = x_BTD.shape
    if before_BTND is None:
        return shift(x_BTD, jnp.zeros((B, N, D), x_BTD.dtype), positions_BT)
    positions_X1 = jnp.broadcast_to(positions_BT, (B, T)).reshape(B * T, 1)
    return shift(x_BTD.reshape(B * T, 1, D), before_BTND.reshape(B * T, N, D), positions_X1).reshape(B, T, D)
