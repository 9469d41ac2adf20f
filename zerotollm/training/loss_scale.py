"""Dynamic loss scaling for float16 (arXiv:1710.03740, section 3.2), as values inside the compiled step.

Unlike `flax.training.dynamic_scale`, one scale serves all micro-batches of a step, it stops growing at a cap, and
skipped steps are counted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

START = 2.0**16
CAP = 2.0**24
"""Growth without end would turn the scale itself to infinity, on a loss that never overflows."""
FLOOR = 1.0
GROWTH_INTERVAL = 1000
"""Steps without overflow after which the scale doubles."""


class LossScale(NamedTuple):
    """What the loss is multiplied by before the backward pass, and its history."""

    scale: jax.Array
    """float32"""
    good_steps: jax.Array
    """int32: since the scale last changed"""
    skipped: jax.Array
    """int32: steps in all whose gradients overflowed and that changed no parameter"""


def init_loss_scale() -> LossScale:
    return LossScale(jnp.float32(START), jnp.int32(0), jnp.int32(0))


def all_finite(tree: Any) -> jax.Array:
    """Whether no leaf holds an infinity or NaN."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def updated(state: LossScale, finite: jax.Array) -> LossScale:
    """After a step: halved where it overflowed; doubled, up to the cap, after `GROWTH_INTERVAL` that did not."""
    good = jnp.where(finite, state.good_steps + 1, 0)
    grows = good >= GROWTH_INTERVAL
    scale = jnp.where(grows, jnp.minimum(2 * state.scale, CAP), state.scale)
    scale = jnp.where(finite, scale, jnp.maximum(state.scale / 2, FLOOR))
    return LossScale(scale, jnp.where(grows, 0, good), state.skipped + ~finite)


def chosen(finite: jax.Array, new: Any, old: Any) -> Any:
    """The new tree, or the old one where the step is skipped."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
