"""Dynamic loss scaling for float16 (arXiv:1710.03740, section 3.2), as values inside the compiled step.

Unlike `flax.training.dynamic_scale`, one scale serves all micro-batches of a step, its growth is capped, and skipped
steps are counted.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from zerotollm.model.build import Params

START = 2.0**16
CAP = 2.0**24
"""Without a cap, the scale itself would overflow on a loss whose gradients never do."""
FLOOR = 1.0
GROWTH_INTERVAL = 1000
"""Steps without overflow after which the scale doubles."""

Tree = TypeVar("Tree")


class LossScale(NamedTuple):
    """The factor on the loss before the backward pass, and its history."""

    scale: jax.Array
    """float32"""
    good_steps: jax.Array
    """int32: steps since the scale last changed"""
    skipped: jax.Array
    """int32: all steps so far whose gradients overflowed and that changed no parameter"""


def init_loss_scale() -> LossScale:
    return LossScale(jnp.float32(START), jnp.int32(0), jnp.int32(0))


def all_finite(tree: Params) -> jax.Array:
    """Return whether no leaf contains an infinity or NaN."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def update_loss_scale(state: LossScale, finite: jax.Array) -> LossScale:
    """Return the scale after a step: halved on overflow; doubled, up to the cap, after `GROWTH_INTERVAL` without."""
    good = jnp.where(finite, state.good_steps + 1, 0)
    grows = good >= GROWTH_INTERVAL
    scale = jnp.where(grows, jnp.minimum(2 * state.scale, CAP), state.scale)
    scale = jnp.where(finite, scale, jnp.maximum(state.scale / 2, FLOOR))
    return LossScale(scale, jnp.where(grows, 0, good), state.skipped + ~finite)


def select_if_finite(finite: jax.Array, new: Tree, old: Tree) -> Tree:
    """Return the new tree, or the old one if the step is skipped."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
