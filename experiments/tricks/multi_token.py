"""Multi-token prediction (arXiv:2404.19737): a second last layer predicts the token after the next, in training."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm import components
from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block, rope_positions
from zerotollm.model.build import Net
from zerotollm.model.layers import KVCache, Norm
from zerotollm.model.transformer import Readout, Transformer
from zerotollm.training.objectives import Batch, Objective

WEIGHT = 0.3
"""of the second loss (DeepSeek-V3, arXiv:2412.19437, section 4.2)"""


class AheadTransformer(Transformer):
    """The built-in decoder with two last layers side by side. `Readout.extra` has the final states of the second.

    Both read the output of the layer before, and share the head (section 2). Decoding leaves out the second.
    """

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
        ahead_BTD = x_BTD
        for i in range(c.num_layers):
            inputs = mask_BTS, rope_positions(c, i, positions_BT)
            if i == c.num_layers - 1 and caches is None:
                ahead_BTD, _ = Block(c, name="ahead")(x_BTD, *inputs, deterministic=deterministic)
            x_BTD, new = Block(c, name=f"layer_{i}")(
                x_BTD, *inputs, deterministic=deterministic, cache=caches[i] if caches else None, slot=slot
            )
            kv.append(new)
        readout = self.read_out(Norm(c, name="final_norm")(x_BTD), embedding_VD)
        if caches is None:
            readout = readout._replace(extra={"ahead_BTD": Norm(c, name="ahead_norm")(ahead_BTD)})
        return readout, kv


def two_ahead(batch: Batch) -> Batch:
    """Return the batch whose targets are the tokens after its targets; the last of a window has weight 0."""

    def earlier(x_BT: jax.Array) -> jax.Array:
        return jnp.pad(x_BT[:, 1:], ((0, 0), (0, 1)))

    return {**batch, "targets": earlier(batch["targets"]), "weights": earlier(batch["weights"])}


def model(experiment: Experiment) -> Net:
    """Return the built-in decoder with a second last layer, whose blocks are run one by one."""
    compute = replace(experiment.compute, remat="none", scan_layers=False)
    return AheadTransformer(experiment.model, compute)


def objective(experiment: Experiment) -> Objective:
    """Return the built-in objective plus `WEIGHT` times the same for the token after the next."""
    built_in = components.objective(experiment)

    def both(readout: Readout, batch: Batch) -> tuple[jax.Array, jax.Array]:
        total, nats = built_in(readout, batch)
        assert readout.extra is not None
        ahead = readout._replace(x_BTD=readout.extra["ahead_BTD"], extra=None)
        return total + WEIGHT * built_in(ahead, two_ahead(batch))[0], nats

    return both
