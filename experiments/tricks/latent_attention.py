"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): the cache holds one narrow vector for all heads."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block
from zerotollm.model.build import Net, build_net
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import (
    KVCache,
    Norm,
    attention_weights,
    mix_values,
    project,
    residual_gain,
    rope,
    split_heads,
    write_slots,
)


class LatentAttention(nn.Module):
    """Attention whose keys and values are projected from a latent of `head_width` features (equations 9 to 19).

    A head's query and key have `head_width` features without rope, and `key_width` with rope. The rotated key is one
    for all heads. So the cache of a token has key_width + head_width numbers: `num_kv_heads` is 1.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BTS: jax.Array,
        positions_BT: jax.Array,
        *,
        cache: KVCache | None = None,
        slot: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Return the output (B, T, D), and what keys and values are made of."""
        c = self.config
        H, C, R = c.num_heads, c.head_width, c.key_width
        # `query` and `key` are the rotated parts: their biases are where previous-token heads are planted.
        turned_BHTR = rope(c, split_heads(project(self, "query", x_BTD, H * R), H), positions_BT)
        key_B1SR = rope(c, split_heads(project(self, "key", x_BTD, R), 1), positions_BT)
        latent_BTC = Norm(c, name="latent_norm")(project(self, "latent", x_BTD, C))
        latent_B1SC = latent_BTC[:, None]
        if cache is not None:
            key_B1SR = write_slots(cache.keys_BKSC, key_B1SR, slot)
            latent_B1SC = write_slots(cache.values_BKSC, latent_B1SC, slot)

        def from_latent(name: str) -> jax.Array:
            return split_heads(project(self, name, latent_B1SC[:, 0], H * C), H)

        content_BHTC = split_heads(project(self, "query_content", x_BTD, H * C), H)
        # A planted head is as sharp as one of `key_width` features.
        turned_BHTR *= ((C + R) / R) ** 0.5
        q_BHTX = jnp.concatenate([content_BHTC, turned_BHTR], axis=-1)
        shared_BHSR = jnp.broadcast_to(key_B1SR, (key_B1SR.shape[0], H, *key_B1SR.shape[2:]))
        k_BHSX = jnp.concatenate([from_latent("key_content"), shared_BHSR], axis=-1)
        mixed_BHTC = mix_values(attention_weights(q_BHTX, k_BHSX, mask_BTS), from_latent("value_content"))
        mixed_BTY = mixed_BHTC.transpose(0, 2, 1, 3).reshape(*x_BTD.shape[:2], H * C)
        out_BTD = project(self, "output", mixed_BTY, c.width, residual_gain(c))
        return out_BTD, KVCache(key_B1SR, latent_B1SC)


def model(experiment: Experiment) -> Net:
    """Return the built-in net with latent attention, which is plain."""
    compute = replace(experiment.compute, attention="plain")
    return build_net(experiment.model, compute, partial(Block, attention=LatentAttention))
