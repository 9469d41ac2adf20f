"""A mixture of experts, two of four for each token (Mixtral, arXiv:2401.04088), each half as wide as the base's."""

from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from zerotollm import components
from zerotollm.experiment import Experiment
from zerotollm.model.blocks import Block, rope_positions
from zerotollm.model.build import Net
from zerotollm.model.config import TransformerConfig
from zerotollm.model.layers import FeedForward, KVCache, Norm, fan_in_normal, linear
from zerotollm.model.transformer import Readout, Transformer
from zerotollm.training.objectives import Batch, Objective

EXPERTS, CHOSEN = 4, 2
BALANCE = 0.01
"""weight of the balance loss, summed over layers"""


def gates(logits_BTE: jax.Array) -> jax.Array:
    """Return the softmax over the `CHOSEN` largest logits of each token, and 0 for the other experts."""
    _, chosen_BTN = jax.lax.top_k(logits_BTE, CHOSEN)
    is_chosen_BTE = jax.nn.one_hot(chosen_BTN, logits_BTE.shape[-1], dtype=bool).any(axis=-2)
    return jax.nn.softmax(jnp.where(is_chosen_BTE, logits_BTE, -jnp.inf), axis=-1)


def balance_loss(logits_BTE: jax.Array) -> jax.Array:
    """Return E sum_e f_e P_e (Switch Transformer, arXiv:2101.03961, equations 4 to 6), 1 if balanced.

    f_e is the share of the choices that expert e has, P_e its mean probability.
    """
    share_E = (gates(logits_BTE) > 0).mean((0, 1)) / CHOSEN
    return logits_BTE.shape[-1] * jnp.sum(share_E * jax.nn.softmax(logits_BTE, axis=-1).mean((0, 1)))


class Experts(nn.Module):
    """The feed-forward of a block: all experts are computed, and weighted by their gates, of which two are not 0."""

    config: TransformerConfig
    report: Callable[[jax.Array], None]
    """is given the router's logits (B, T, E)"""

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Return the weighted sum of the experts, (B, T, D)."""
        c = self.config
        router_DE = self.param("router", fan_in_normal(c.width), (c.width, EXPERTS))
        logits_BTE = linear(x_BTD, router_DE, out_type=jnp.float32)
        self.report(logits_BTE)
        gates_BTE = gates(logits_BTE).astype(x_BTD.dtype)
        narrow = replace(c, ff_width=c.ff_width // CHOSEN)
        out_BTD = jnp.zeros_like(x_BTD)
        for e in range(EXPERTS):
            out_BTD += gates_BTE[..., e : e + 1] * FeedForward(narrow, name=f"expert_{e}")(x_BTD)
        return out_BTD


class ExpertTransformer(Transformer):
    """The built-in decoder with experts. `Readout.extra` has the "balance" loss."""

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
        logits: list[jax.Array] = []
        for i in range(c.num_layers):

            def experts(config: TransformerConfig, name: str) -> nn.Module:
                return Experts(config, logits.append, name=name)

            x_BTD, new = Block(c, feed_forward=experts, name=f"layer_{i}")(
                x_BTD,
                mask_BTS,
                rope_positions(c, i, positions_BT),
                deterministic=deterministic,
                cache=caches[i] if caches else None,
                slot=slot,
            )
            kv.append(new)
        readout = self.read_out(Norm(c, name="final_norm")(x_BTD), embedding_VD)
        return readout._replace(extra={"balance": sum(map(balance_loss, logits), jnp.zeros(()))}), kv


def model(experiment: Experiment) -> Net:
    """Return the built-in decoder with experts, whose blocks are run one by one."""
    compute = replace(experiment.compute, remat="none", scan_layers=False)
    return ExpertTransformer(experiment.model, compute)


def objective(experiment: Experiment) -> Objective:
    """Return the built-in objective plus the balance loss of every layer, for each token of the batch."""
    built_in = components.objective(experiment)

    def balanced(readout: Readout, batch: Batch) -> tuple[jax.Array, jax.Array]:
        total, nats = built_in(readout, batch)
        assert readout.extra is not None
        return total + BALANCE * jnp.sum(batch["weights"]) * readout.extra["balance"], nats

    return balanced
