"""Value residual (arXiv:2410.17897): every layer's values are mixed with those of the first."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax

from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block, rope_positions
from zerotollm.model.build import Net
from zerotollm.model.layers import Attention, KVCache, Norm
from zerotollm.model.transformer import Readout, Transformer

INITIAL = (0.5, 0.5)
"""weights of the layer's own values and of the first layer's, at first"""


class ResidualAttention(Attention):
    """Attention to a V + b V1, with a and b learned for each layer (learnable ResFormer)."""

    first_BKSC: jax.Array | None = None
    """values of the first layer; None in the first"""

    def attend(
        self, q_BHTC: jax.Array, k_BKSC: jax.Array, v_BKSC: jax.Array, mask_BTS: jax.Array
    ) -> jax.Array:
        """Return the mixed values, (B, H, T, C). The cache keeps the layer's own: it has the first layer's already."""
        if self.first_BKSC is not None:
            own, first = (
                self.param(name, nn.initializers.constant(value), ())
                for name, value in zip(("own_weight", "first_weight"), INITIAL, strict=True)
            )
            v_BKSC = own * v_BKSC + first * self.first_BKSC
        return super().attend(q_BHTC, k_BKSC, v_BKSC, mask_BTS)


class ResidualTransformer(Transformer):
    """The built-in decoder with value residuals."""

    @nn.compact
    def forward(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask_BTS: jax.Array,
        since_start_BT: jax.Array,
        *,
        deterministic: bool = True,
        caches: tuple[KVCache, ...] | None = None,
        slot: jax.Array | int = 0,
        before_BN: jax.Array | None = None,
    ) -> tuple[Readout, list[tuple[KVCache, ...]]]:
        """Return the readout, and the keys and values of each block."""
        c = self.config
        x_BTD, embedding_VD = self.embed(
            tokens_BT, positions_BT, since_start_BT, before_BN, deterministic=deterministic
        )
        kv: list[tuple[KVCache, ...]] = []
        for i in range(c.num_layers):
            first_BKSC = kv[0][0].values_BKSC if kv else None
            block = Block(c, attention=partial(ResidualAttention, first_BKSC=first_BKSC), name=f"layer_{i}")
            x_BTD, new = block(
                x_BTD,
                mask_BTS,
                rope_positions(c, i, positions_BT),
                deterministic=deterministic,
                cache=caches[i] if caches else None,
                slot=slot,
            )
            kv.append(new)
        return self.read_out(Norm(c, name="final_norm")(x_BTD), embedding_VD), kv


def model(experiment: Experiment) -> Net:
    """Return the built-in decoder with value residuals, whose blocks are run one by one."""
    compute = replace(experiment.compute, attention="plain", remat="none", scan_layers=False)
    return ResidualTransformer(experiment.model, compute)
