"""Operations of a traced program are counted, loops once an iteration, without computing anything."""

import jax
import jax.numpy as jnp
import pytest

from zerotollm.planning.jaxpr_cost import Product, count

x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
w = jax.ShapeDtypeStruct((8, 8), jnp.float32)
FLOPS = 2 * 4 * 8 * 8
PRODUCT = Product(FLOPS, 4 * (32 + 64 + 32), 4 * 32)


def test_a_product_and_what_is_written():
    counts = count(lambda x, w: jnp.tanh(x @ w).reshape(-1), x, w)
    assert counts.products == {PRODUCT: 1}
    assert counts.touched == 4 * 32, "tanh writes; a view does not"


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_counts_as_often_as_it_turns_and_remat_computes_again(remat):
    def layer(x, w):
        return jnp.tanh(x @ w)

    def loss(x, w):
        body = jax.checkpoint(layer) if remat else layer
        return jnp.sum(jax.lax.scan(lambda x, _: (body(x, w), None), x, length=5)[0])

    forward, both = count(loss, x, w).flops, count(jax.grad(loss, argnums=(0, 1)), x, w).flops
    assert forward == 5 * FLOPS
    assert both == (4 if remat else 3) * forward


def test_of_a_condition_one_branch_counts():
    def either(x, w):
        return jax.lax.cond(jnp.sum(x) > 0, lambda: x @ w, lambda: x)

    assert count(either, x, w).flops == FLOPS
