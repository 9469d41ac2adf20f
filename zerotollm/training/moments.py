"""Optimizer state in 16 bits: half the memory of moments, computed with in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def moments_in(dtype: str, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same rule, whose floating-point state is kept in `dtype` between steps.

    Of Adam's second moment the root is kept: squares of small gradients are zero in float16. With bfloat16's 8
    bits a mean that moves by less than 1/256 a step stands still, so take beta2 of 0.98 or below.
    """
    if dtype == "float32":
        return rule

    def cast(tree: Any, to: str) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def pack(state: Any) -> Any:
        if isinstance(state, optax.ScaleByAdamState):
            state = state._replace(nu=jax.tree.map(jnp.sqrt, state.nu))
        return cast(state, dtype)

    def unpack(state: Any) -> Any:
        state = cast(state, "float32")
        if isinstance(state, optax.ScaleByAdamState):
            state = state._replace(nu=jax.tree.map(jnp.square, state.nu))
        return state

    def init(params: Any) -> Any:
        return pack(rule.init(params))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(gradients, unpack(state), params)
        return updates, pack(state)

    return optax.GradientTransformation(init, update)
