"""Cross-entropy with its penalties, from given logits or from chunks of logits that are never all in memory.

The chunked form computes the gradient of each chunk along with its loss: the gradient of a sum of losses is known as
soon as the logits are. It takes three matrix products, as plain backpropagation does, and stores the gradients of
activations and head alone (as in Liger, arXiv:2410.10989, section 3.2). N tokens; other axes as in
`zerotollm.model.transformer`.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from zerotollm.sharding.constraints import ROWS, constrain, row_shards

LOGITS = 2**24
"""Most logits of a chunk: 64 MiB in float32."""
HALF_RANGE = 2.0**10
"""Factor on gradients of logits in float16: they are within +-1, and small ones would underflow."""


class Penalty(NamedTuple):
    """Terms that the training objective adds to the cross-entropy."""

    label_smoothing: float = 0.0
    """fraction of the target spread evenly over V rows (arXiv:1512.00567, section 7; arXiv:1706.03762, section 5.4)"""
    z_loss: float = 0.0
    """weight of log(Z)^2, which keeps log(Z) near 0 (PaLM, arXiv:2204.02311, section 5)"""
    soft_cap: float = 0.0
    """chunked form: logits become cap x tanh(logits / cap); 0: unchanged"""


NO_PENALTY = Penalty()


def token_losses(
    logits_XV: jax.Array, targets_X: jax.Array, penalty: Penalty = NO_PENALTY
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (penalized loss, cross-entropy, log Z) of every token, each of the shape X of `targets_X`, in nats.

    The cross-entropy is the negative log-likelihood of the target: log Z minus its logit.
    """
    log_z_X = jax.nn.logsumexp(logits_XV, axis=-1)
    nats_X = log_z_X - jnp.take_along_axis(logits_XV, targets_X[..., None], axis=-1)[..., 0]
    loss_X = nats_X
    if penalty.label_smoothing:
        even_X = log_z_X - jnp.mean(logits_XV, axis=-1)
        loss_X = (1 - penalty.label_smoothing) * nats_X + penalty.label_smoothing * even_X
    if penalty.z_loss:
        loss_X = loss_X + penalty.z_loss * jnp.square(log_z_X)
    return loss_X, nats_X, log_z_X


def rows_for(tokens: int, vocab_size: int) -> int:
    """Return the rows of a chunk: chunks of equal size, a multiple of 8, with at most about `LOGITS` logits."""
    chunks = max(1, -(-tokens * vocab_size // LOGITS))
    return min(tokens, -(-tokens // chunks // 8) * 8)


def chunked_cross_entropy(
    x_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    penalty: Penalty = NO_PENALTY,
    rows: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Return (objective, nats): weighted sums over tokens of the penalized loss and of the cross-entropy, in nats.

    They equal those of plain logits `x_BTD @ head_DV` up to float32 rounding. A chunk has `rows` tokens (0: chosen by
    size). Products have the type of `x_BTD`, everything else is float32. Gradients flow to `x_BTD` and `head_DV`, from
    the objective alone.
    """
    B, T, D = x_BTD.shape
    shards = row_shards()  # every chunk has rows of every device
    rows = rows or rows_for(B * T // shards, head_DV.shape[1])
    chunks = -(-B * T // (shards * rows))

    def split(x: jax.Array, *tail: int) -> jax.Array:
        x = x.reshape(shards, B * T // shards, *tail)
        x = jnp.pad(x, ((0, 0), (0, chunks * rows - B * T // shards), *((0, 0) for _ in tail)))
        x = x.reshape(shards, chunks, rows, *tail).swapaxes(0, 1).reshape(chunks, shards * rows, *tail)
        return constrain(x, None, ROWS)

    x_JND, targets_JN, weights_JN = split(x_BTD, D), split(targets_BT), split(weights_BT)
    sums = _loss(x_JND, head_DV, targets_JN, weights_JN, penalty)
    objective, nats = cast(tuple[jax.Array, jax.Array], sums)
    return objective, jax.lax.stop_gradient(nats)


def _chunk(
    x_ND: jax.Array, head_DV: jax.Array, targets_N: jax.Array, weights_N: jax.Array, penalty: Penalty
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the objective, nats, logits and log Z of one chunk."""
    logits_NV = jnp.matmul(x_ND, head_DV, preferred_element_type=jnp.float32)
    if penalty.soft_cap:
        logits_NV = penalty.soft_cap * jnp.tanh(logits_NV / penalty.soft_cap)
    loss_N, nats_N, log_z_N = token_losses(logits_NV, targets_N, penalty)
    return jnp.sum(loss_N * weights_N), jnp.sum(nats_N * weights_N), logits_NV, log_z_N


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(
    x_JND: jax.Array, head_DV: jax.Array, targets_JN: jax.Array, weights_JN: jax.Array, penalty: Penalty
) -> tuple[jax.Array, jax.Array]:
    head = constrain(head_DV.astype(x_JND.dtype), None, "tensor")

    def add(sums, chunk):
        x_ND, targets_N, weights_N = chunk
        objective, nats, _, _ = _chunk(x_ND, head, targets_N, weights_N, penalty)
        return (sums[0] + objective, sums[1] + nats), None

    zeros = (jnp.zeros(()), jnp.zeros(()))
    return jax.lax.scan(add, zeros, (x_JND, targets_JN, weights_JN))[0]


def _loss_forward(x_JND, head_DV, targets_JN, weights_JN, penalty):
    """Return the sums, and the gradients with respect to x and head for an incoming gradient of 1."""
    head, V = constrain(head_DV.astype(x_JND.dtype), None, "tensor"), head_DV.shape[1]
    # On a mesh each shard accumulates its own gradient of the head: one sum over devices, not one per chunk.
    parts = row_shards()
    lead = (parts,) if parts > 1 else ()

    def split_head_gradient(x_ND: jax.Array, d_NV: jax.Array) -> jax.Array:
        if not lead:
            return jnp.matmul(x_ND.T, d_NV, preferred_element_type=jnp.float32)
        x_PND, d_PNV = (x.reshape(parts, -1, x.shape[-1]) for x in (x_ND, d_NV))
        d_PDV = jnp.einsum("pnd,pnv->pdv", x_PND, d_PNV, preferred_element_type=jnp.float32)
        return constrain(d_PDV, ROWS, None, "tensor")

    factor = HALF_RANGE if x_JND.dtype == jnp.float16 else 1.0

    def add(carry, chunk):
        objective, nats, dhead = carry
        x_ND, targets_N, weights_N = chunk
        more, more_nats, logits_NV, log_z_N = _chunk(x_ND, head, targets_N, weights_N, penalty)
        p_NV = jnp.exp(logits_NV - log_z_N[:, None])
        hit_NV = jnp.arange(V)[None] == targets_N[:, None]
        smoothed = penalty.label_smoothing
        d_NV = p_NV - jnp.where(hit_NV, 1 - smoothed + smoothed / V, smoothed / V)
        if penalty.z_loss:
            d_NV += 2 * penalty.z_loss * log_z_N[:, None] * p_NV
        if penalty.soft_cap:
            d_NV *= 1 - jnp.square(logits_NV / penalty.soft_cap)
        d_NV = (d_NV * (weights_N * factor)[:, None]).astype(x_ND.dtype)
        dx_ND = jnp.matmul(d_NV, head.T, preferred_element_type=jnp.float32) / factor
        dhead += split_head_gradient(x_ND, d_NV) / factor
        return (objective + more, nats + more_nats, dhead), dx_ND

    zeros = constrain(
        jnp.zeros((*lead, *head_DV.shape), jnp.float32), *([ROWS] if lead else []), None, "tensor"
    )
    start = (jnp.zeros(()), jnp.zeros(()), zeros)
    (objective, nats, dhead), dx_JND = jax.lax.scan(add, start, (x_JND, targets_JN, weights_JN))
    dhead_DV = dhead.sum(0) if lead else dhead
    types = (jnp.zeros((), x_JND.dtype), jnp.zeros((), head_DV.dtype))
    return (objective, nats), (dx_JND, dhead_DV, types)


def _loss_backward(penalty, residuals, gradients):
    dx_JND, dhead_DV, (x_type, head_type) = residuals
    scale, _ = gradients  # the gradient of nats is stopped in `chunked_cross_entropy`
    dx, dhead = (scale * dx_JND).astype(x_type.dtype), (scale * dhead_DV).astype(head_type.dtype)
    return dx, dhead, None, None


_loss.defvjp(_loss_forward, _loss_backward)
