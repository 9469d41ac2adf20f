"""Training objectives: functions of the readout and the batch that gradient descent minimizes."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from zerotollm.model.transformer import Readout
from zerotollm.training.cross_entropy import Penalty, chunked_cross_entropy, token_losses

Batch = Mapping[str, jax.Array]
"""The net's inputs, "targets" (B, T) int32, and "weights" (B, T) float32, 0 at tokens without a loss."""
Objective = Callable[[Readout, Batch], tuple[jax.Array, jax.Array]]
"""(readout, batch) -> (training objective, cross-entropy), weighted sums over tokens in nats. Gradients are of the
first. The second is reported: it is comparable between objectives."""


def cross_entropy_objective(
    label_smoothing: float = 0.0, z_loss: float = 0.0, *, chunked: bool = False
) -> Objective:
    """Return the cross-entropy with the penalties of `Penalty`. With `chunked`, logits are never all in memory."""
    penalty = Penalty(label_smoothing, z_loss)

    def objective(readout: Readout, batch: Batch) -> tuple[jax.Array, jax.Array]:
        targets_BT, weights_BT = batch["targets"], batch["weights"]
        if chunked:
            x_BTD, head_DV = readout.x_BTD, readout.head_DV
            if readout.bias_V is not None:  # the bias as a row of the head, for a feature that is 1
                x_BTD = jnp.concatenate([x_BTD, jnp.ones_like(x_BTD[..., :1])], axis=-1)
                head_DV = jnp.concatenate([head_DV, readout.bias_V[None]])
            x_BTD = jnp.broadcast_to(x_BTD, (*targets_BT.shape, x_BTD.shape[-1]))
            capped = penalty._replace(soft_cap=readout.soft_cap)
            return chunked_cross_entropy(x_BTD, head_DV, targets_BT, weights_BT, capped)
        logits_BTV = logits_of(readout, batch)
        loss_BT, nats_BT, _ = token_losses(logits_BTV, targets_BT, penalty)
        nats = jnp.sum(nats_BT * weights_BT)
        return (jnp.sum(loss_BT * weights_BT) if label_smoothing or z_loss else nats), nats

    return objective


def logits_of(readout: Readout, batch: Batch) -> jax.Array:
    """Return the logits of every target, (B, T, V) in float32."""
    logits_BTV = readout.logits()
    return jnp.broadcast_to(logits_BTV, (*batch["targets"].shape, logits_BTV.shape[-1]))
