"""Optimizer state stored in 16 bits, half the memory; updates are computed in float32."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

State = TypeVar("State")


def store_moments_in(dtype: str, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the same rule with its floating-point state stored in `dtype` between steps.

    Adam's second moment is stored as its square root: squares of small gradients underflow in float16. With bfloat16's
    8 bits, a mean that changes by less than 1/256 a step never changes: choose beta2 of 0.98 or below.
    """
    if dtype == "float32":
        return rule

    def cast(tree: State, to: str) -> State:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def pack(state: optax.OptState) -> optax.OptState:
        if isinstance(state, optax.ScaleByAdamState):
            state = state._replace(nu=jax.tree.map(jnp.sqrt, state.nu))
        return cast(state, dtype)

    def unpack(state: optax.OptState) -> optax.OptState:
        state = cast(state, "float32")
        if isinstance(state, optax.ScaleByAdamState):
            state = state._replace(nu=jax.tree.map(jnp.square, state.nu))
        return state

    def init(params: optax.Params) -> optax.OptState:
        return pack(rule.init(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = rule.update(updates, unpack(state), params)
        return updates, pack(state)

    return optax.GradientTransformation(init, update)
