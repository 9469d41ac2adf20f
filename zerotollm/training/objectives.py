"""What training makes small."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target, (B, T) in nats: log sum exp(logits) - logit of the target."""
    target_logit_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_logit_BT


def penalized(
    nats_BT: jax.Array, logits_BTV: jax.Array, *, label_smoothing: float, z_loss: float
) -> jax.Array:
    """What gradients make small instead of the cross-entropy `nats_BT`; (B, T).

    With label smoothing (arXiv:1512.00567, section 7; arXiv:1706.03762, section 5.4) a share of each target is
    spread evenly over all V rows. `z_loss` times log(Z)^2 keeps log(Z) near 0 (PaLM, arXiv:2204.02311, section 5).
    """
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    even_BT = log_z_BT - jnp.mean(logits_BTV, axis=-1)
    return (1 - label_smoothing) * nats_BT + label_smoothing * even_BT + z_loss * jnp.square(log_z_BT)
