"""Filters of sampling: which of the next tokens may be drawn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zerotollm.fields import INT32_MAX


def filter_logits(
    logits_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, min_p_B: jax.Array
) -> jax.Array:
    """Return the logits with minus infinity at tokens that top-k, top-p or min-p exclude. The most likely one stays.

    Each row has filters of its own; k = 0, p = 1 and min_p = 0 exclude nothing. Top-k (arXiv:1805.04833) keeps the k
    most likely tokens. Top-p (arXiv:1904.09751) keeps the smallest set with at least probability p. Min-p
    (arXiv:2407.01082) keeps the tokens at least min_p times as likely as the most likely one. At the threshold of top-k
    and top-p, lower ids win ties.
    """
    V = logits_BV.shape[-1]
    k_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)
    probabilities_BV = jax.nn.softmax(logits_BV, axis=-1)
    rank_BV = _in_order(logits_BV)
    lowest = _lowest_by_bisection if jax.default_backend() == "cpu" else _lowest_by_sort
    lowest_B = lowest(rank_BV, probabilities_BV, k_B, top_p_B)
    count_B, mass_B = _above(rank_BV, probabilities_BV, lowest_B)
    tied_BV = rank_BV == lowest_B[:, None]
    # Lower ids win ties. Few logits have any, which take a scan over the vocabulary.
    before_BV = jax.lax.cond(
        jnp.any(tied_BV.sum(axis=-1) > 1),
        lambda x_BV: jnp.cumsum(x_BV, axis=-1) - x_BV,
        jnp.zeros_like,
        tied_BV.astype(jnp.int32),
    )
    mass_BV = mass_B[:, None] + before_BV * probabilities_BV
    place_BV = count_B[:, None] + before_BV  # the first stays also where p is 0 in float32
    tied_BV &= (place_BV == 0) | ((place_BV < k_B[:, None]) & (mass_BV < top_p_B[:, None]))
    keep_BV = (rank_BV > lowest_B[:, None]) | tied_BV
    keep_BV &= probabilities_BV >= min_p_B[:, None] * probabilities_BV.max(axis=-1, keepdims=True)
    return jnp.where(keep_BV, logits_BV, -jnp.inf)


def _in_order(x: jax.Array) -> jax.Array:
    """Return int32 numbers in the order of these float32 numbers."""
    no_sign = jnp.where(x == 0, 0.0, x)  # -0.0 is as large as 0.0; XLA would leave out `+ 0.0`
    bits = jax.lax.bitcast_convert_type(no_sign, jnp.int32)
    return bits ^ ((bits >> 31) & INT32_MAX)


def _above(rank_BV: jax.Array, probabilities_BV: jax.Array, rank_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the number of tokens of a higher rank, and their probability."""
    above_BV = rank_BV > rank_B[:, None]
    return above_BV.sum(axis=-1), jnp.where(above_BV, probabilities_BV, 0).sum(axis=-1)


def _lowest_by_sort(
    rank_BV: jax.Array, probabilities_BV: jax.Array, k_B: jax.Array, top_p_B: jax.Array
) -> jax.Array:
    """Return the lowest rank of which tokens are kept: fewer than k are above, with a probability below top-p."""
    sorted_BV, sorted_probabilities_BV = jax.lax.sort((-rank_BV, probabilities_BV), num_keys=1)
    before_BV = jnp.cumsum(sorted_probabilities_BV, axis=-1) - sorted_probabilities_BV
    keep_BV = (jnp.arange(rank_BV.shape[-1])[None] < k_B[:, None]) & (before_BV < top_p_B[:, None])
    return jnp.where(keep_BV.at[:, 0].set(True), -sorted_BV, INT32_MAX).min(axis=-1)


class _Bisection(NamedTuple):
    halvings: jax.Array
    low_B: jax.Array
    high_B: jax.Array
    above_B: jax.Array
    """tokens above `high`"""
    between_B: jax.Array
    """tokens above `low` and not above `high`"""


def _lowest_by_bisection(
    rank_BV: jax.Array, probabilities_BV: jax.Array, k_B: jax.Array, top_p_B: jax.Array
) -> jax.Array:
    """Return the same as `_lowest_by_sort`, on a CPU in a fraction of its time.

    `low` is too low and `high` is not. The search ends when one token lies between them, or several of one logit.
    """

    def unfinished(state: _Bisection) -> jax.Array:
        return (state.halvings < 32) & jnp.any((state.between_B > 1) & (state.low_B + 1 < state.high_B))

    def halve(state: _Bisection) -> _Bisection:
        # The mean, without overflow.
        middle_B = (state.low_B & state.high_B) + ((state.low_B ^ state.high_B) >> 1)
        count_B, mass_B = _above(rank_BV, probabilities_BV, middle_B)
        kept_B = (count_B < k_B) & (mass_B < top_p_B)
        return _Bisection(
            state.halvings + 1,
            low_B=jnp.where(kept_B, state.low_B, middle_B),
            high_B=jnp.where(kept_B, middle_B, state.high_B),
            above_B=jnp.where(kept_B, count_B, state.above_B),
            between_B=jnp.where(kept_B, state.above_B + state.between_B - count_B, count_B - state.above_B),
        )

    none_B = jnp.zeros_like(k_B)
    start = _Bisection(
        jnp.int32(0), rank_BV.min(axis=-1) - 1, rank_BV.max(axis=-1), none_B, none_B + rank_BV.shape[-1]
    )
    low_B = jax.lax.while_loop(unfinished, halve, start).low_B
    return jnp.where(rank_BV > low_B[:, None], rank_BV, INT32_MAX).min(axis=-1)
