"""The stack of Transformer blocks: run one by one, rematerialized, or compiled once and scanned over layers."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.model.chunked_attention import AttentionMask
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import Attention, Dropout, FeedForward, KVCache, Norm
from zerotollm.sharding.constraints import ROWS, constrain

# What each value of `remat` stores. Attention scores are products with batch axes: "dots" does not store them.
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class EncoderOutput(NamedTuple):
    """The input of a decoder's cross attention."""

    mask_BS: jax.Array
    """False at padding"""
    encoded_BSD: jax.Array | None
    """output of the encoder; None if `kv` replaces it"""
    kv: tuple[KVCache, ...] | None = None
    """precomputed cross-attention keys and values, one per layer"""

    def of_layer(self, layer: int) -> "EncoderOutput":
        """Return the same with the keys and values of one layer only."""
        return self._replace(kv=self.kv and self.kv[layer : layer + 1])


class Block(nn.Module):
    """Self attention, cross attention if there is an encoder, and feed-forward (arXiv:1706.03762, figure 1).

    Each has a norm and a residual connection.
    """

    config: TransformerConfig
    attention: Callable[..., nn.Module] = Attention
    """called as `Attention` is; another class replaces self and cross attention"""
    feed_forward: Callable[..., nn.Module] = FeedForward
    """called as `FeedForward` is"""

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
        encoder: EncoderOutput | None = None,
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """Return the output (B, T, D), and the keys and values of self attention and of cross attention.

        `encoder` holds at most one layer of keys and values. If it has fewer rows than `x_BTD`, each of its rows serves
        several consecutive rows of `x_BTD`, as in a beam.
        """
        c = self.config
        kv: list[KVCache] = []

        def attention(h_BTD: jax.Array) -> jax.Array:
            out_BTD, new = self.attention(c, name="attention")(
                h_BTD, mask_BTS, positions_BT, cache=cache, slot=slot
            )
            kv.append(new)
            return out_BTD

        def cross_attention(h_BTD: jax.Array) -> jax.Array:
            assert encoder is not None
            # Rows that share a source become more queries to the same keys: nothing is copied.
            rows = encoder.mask_BS.shape[0]
            positions_RX = jnp.broadcast_to(positions_BT, h_BTD.shape[:2]).reshape(rows, -1)
            out_BTD, new = self.attention(c, name="cross_attention")(
                h_BTD.reshape(rows, -1, c.width),
                encoder.mask_BS[:, None],
                positions_RX,
                context_BSD=encoder.encoded_BSD,
                known=encoder.kv[0] if encoder.kv else None,
            )
            kv.append(new)
            return out_BTD.reshape(h_BTD.shape)

        sublayers: dict[str, Callable[[jax.Array], jax.Array]] = {"attention": attention}
        if encoder:
            sublayers["cross_attention"] = cross_attention
        sublayers["feed_forward"] = self.feed_forward(c, name="feed_forward")
        for name, sublayer in sublayers.items():
            norm = Norm(c, name=f"{name}_norm")
            dropout = partial(Dropout(c.dropout), deterministic=deterministic)
            if c.norm_position == "pre":
                x_BTD = x_BTD + dropout(sublayer(norm(x_BTD)))
            else:
                x_BTD = norm(x_BTD + dropout(sublayer(x_BTD)))
        self.sow("intermediates", "x_BTD", x_BTD)
        return constrain(x_BTD, ROWS), tuple(kv)


def rope_positions(config: TransformerConfig, layer: int | jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Return the positions for the rope of a layer: all 0, which turns nothing, where `nope_every` says so."""
    if not config.nope_every:
        return positions_BT
    return jnp.where((layer + 1) % config.nope_every == 0, 0, positions_BT)


def run_blocks(
    module: nn.Module,
    num_layers: int,
    x_BTD: jax.Array,
    mask_BTS: jax.Array | AttentionMask,
    positions_BT: jax.Array,
    *,
    deterministic: bool,
    caches: tuple[KVCache, ...] | None = None,
    slot: jax.Array | int = 0,
    encoder: EncoderOutput | None = None,
) -> tuple[jax.Array, list[tuple[KVCache, ...]]]:
    """Apply blocks `layer_0`, `layer_1`, ... of `module`, and its `final_norm` if norms come first.

    `module` has `config`, `compute` and `block`, the class of its blocks. Return the output (B, T, D), and the keys and
    values of each block. Rematerialized or scanned blocks (`module.compute`) return none of these.
    """
    c, block = module.config, module.block
    kv: list[tuple[KVCache, ...]] = []
    # Neither rematerialization nor scan can create parameters.
    plain = caches is not None or module.is_initializing()
    if plain or not (module.compute.scan_layers or module.compute.remat != "none"):
        for i in range(num_layers):
            x_BTD, new = block(c, name=f"layer_{i}")(
                x_BTD,
                mask_BTS,
                rope_positions(c, i, positions_BT),
                deterministic=deterministic,
                cache=caches and caches[i],
                slot=slot,
                encoder=encoder and encoder.of_layer(i),
            )
            kv.append(new)
    else:
        inputs = {"mask_BTS": mask_BTS, "encoder": encoder}
        x_BTD = (_scan_blocks if module.compute.scan_layers else _remat_blocks)(
            module, num_layers, x_BTD, positions_BT, deterministic=deterministic, **inputs
        )
    if c.norm_position == "pre":
        x_BTD = Norm(c, name="final_norm")(x_BTD)
    return x_BTD, kv


def _remat_blocks(
    module: nn.Module, num_layers: int, x_BTD: jax.Array, positions_BT: jax.Array, **inputs
) -> jax.Array:
    """Recompute in the backward pass the activations that `compute.remat` does not store (arXiv:1604.06174)."""

    def apply(block: nn.Module, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return block(x_BTD, positions_BT=positions_BT, **inputs)[0]

    run = nn.remat(apply, policy=POLICIES[module.compute.remat])
    for i in range(num_layers):
        layer_positions_BT = rope_positions(module.config, i, positions_BT)
        x_BTD = run(module.block(module.config, name=f"layer_{i}"), x_BTD, layer_positions_BT)
    return x_BTD


def _scan_blocks(
    module: nn.Module,
    num_layers: int,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    *,
    deterministic: bool,
    **inputs,
) -> jax.Array:
    """Loop over the parameters of all layers, so that XLA compiles one block.

    The parameters of the layers are stacked here, matrices in the type of `x_BTD`: in half precision the products need
    that copy anyway. The dropout key is split over layers.
    """
    c, remat = module.config, module.compute.remat
    layers = [module.variables["params"][f"layer_{i}"] for i in range(num_layers)]
    key = None if deterministic or not c.dropout else module.make_rng("dropout")

    def stack(*leaves: jax.Array) -> jax.Array:
        matrix = leaves[0].ndim == 2
        return jnp.stack([leaf.astype(x_BTD.dtype) if matrix else leaf for leaf in leaves])

    def body(x_BTD: jax.Array, layer: tuple[dict, jax.Array | None, jax.Array]) -> tuple[jax.Array, None]:
        params, key, i = layer
        rngs = None if key is None else {"dropout": key}
        apply: Callable = partial(module.block(c, parent=None).apply, {"params": params}, rngs=rngs)
        positions = rope_positions(c, i, positions_BT)
        return apply(x_BTD, positions_BT=positions, deterministic=key is None, **inputs)[0], None

    if remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[remat], prevent_cse=False)  # not needed in a loop
    keys = None if key is None else jax.random.split(key, num_layers)
    return jax.lax.scan(body, x_BTD, (jax.tree.map(stack, *layers), keys, jnp.arange(num_layers)))[0]
