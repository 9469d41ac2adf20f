"""The counts, compared with the parameters of the model and the operations of its program."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from tests.functions import forward, init_params
from zerotollm.model.config import TransformerConfig, resolve
from zerotollm.planning.flops import forward_flops, num_parameters, train_flops

BASE = TransformerConfig(num_layers=3, width=64, num_heads=4, num_kv_heads=2)
CONTEXT = 32
CHANGES = [
    {},
    {"norm": "layer"},
    {"norm_position": "post"},
    {"position": "learned"},
    {"feed_forward": "gelu"},
    {"tie_embeddings": True},
    {"qk_norm": False},
    {"token_shift": 3},
    {"num_kv_heads": 1, "head_width": 32},
    {"key_width": 8},
    {"biases": "feed_forward"},
    {"biases": "all", "norm": "layer"},
    {"biases": "qkv", "feed_forward": "silu"},
    {"biases": "attention"},
]
PAIR = {"architecture": "encoder-decoder", "encoder_layers": 2}
EVERYWHERE = PAIR | {"biases": "everywhere"}
LABELS = {"num_classes": 5}
KINDS = [*CHANGES, *(c | PAIR for c in CHANGES), EVERYWHERE]


LABELLED = [{}, {"tie_embeddings": True}, {"position": "learned"}, {"biases": "all", "norm": "layer"}]


@pytest.mark.parametrize(
    "change",
    [*KINDS, *(c | LABELS for c in LABELLED), *(c | PAIR | LABELS for c in LABELLED), EVERYWHERE | LABELS],
    ids=str,
)
def test_parameters_are_those_that_exist(change):
    model = resolve(replace(BASE, **change), vocab_size=256, context=CONTEXT)
    params = jax.eval_shape(lambda: init_params(model, 0))
    assert num_parameters(model) == sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("change", [*CHANGES, LABELS, LABELS | {"tie_embeddings": True}], ids=str)
def test_forward_flops_are_the_matrix_products_of_the_program(change):
    model = resolve(replace(BASE, **change), vocab_size=256, context=CONTEXT)
    program = jax.make_jaxpr(lambda params, tokens_BT: forward(model)(params, tokens_BT))
    tokens_BT = jnp.zeros((2, CONTEXT), jnp.int32)
    jaxpr = program(jax.eval_shape(lambda: init_params(model, 0)), tokens_BT)
    assert forward_flops(model, CONTEXT) * tokens_BT.size == product_flops(jaxpr.jaxpr)
    assert train_flops(model, CONTEXT) == 3 * forward_flops(model, CONTEXT)


@pytest.mark.parametrize("num_classes", [0, CONTEXT])
def test_forward_flops_of_an_encoder_and_a_decoder_or_labels(num_classes):
    """As many classes as tokens, so that the share of the head in a token is a whole number."""
    model = resolve(
        replace(BASE, **PAIR, key_width=8, num_classes=num_classes), vocab_size=256, context=CONTEXT
    )
    tokens_BT = jnp.zeros((2, CONTEXT), jnp.int32)
    program = jax.make_jaxpr(lambda params: forward(model)(params, tokens_BT, tokens_BT == 0, tokens_BT))
    jaxpr = program(jax.eval_shape(lambda: init_params(model, 0)))
    assert forward_flops(model, CONTEXT) * tokens_BT.size == product_flops(jaxpr.jaxpr)


def product_flops(jaxpr) -> int:
    """2 x (size of the result) x (length of the contracted axes), over all dot_generals, inner programs too."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # closed or open
            total += product_flops(inner) if hasattr(inner, "eqns") else 0
    return total
