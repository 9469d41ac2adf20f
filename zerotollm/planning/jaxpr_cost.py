"""Operations of a traced program, counted from its jaxpr: nothing is compiled, allocated or run."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jax.core import AbstractValue
from jax.extend.core import Jaxpr, JaxprEqn

from zerotollm.types import PyTree

# Operations without a pass over memory of their own.
VIEWS = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims", "slice", "split"}
ALWAYS_FUSED = {"iota", "stop_gradient", "copy", "convert_element_type"}


class Product(NamedTuple):
    """A matrix product."""

    flops: int
    """2 x (size of the result) x (length of the contracted axes)"""
    bytes: int
    """of both operands and the result"""
    result: int
    """bytes of the result alone"""


class Counts(NamedTuple):
    """Operations of one run of a program."""

    products: Counter[Product]
    touched: int
    """bytes of the results of every other operation, as if none were fused with another"""
    operations: int
    """number of operations, products included"""

    @property
    def flops(self) -> int:
        """Floating-point operations of all matrix products."""
        return sum(times * product.flops for product, times in self.products.items())


def count(program: Callable[..., PyTree], *arguments: PyTree) -> Counts:
    """Count the operations of `program(*arguments)`; arrays may be shapes. A loop counts once an iteration."""
    products: Counter[Product] = Counter()
    touched = operations = 0
    for equation, times in _equations(jax.make_jaxpr(program)(*arguments).jaxpr, 1):
        name = equation.primitive.name
        size = sum(_bytes(out.aval) for out in equation.outvars)
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(_shape(equation.invars[0].aval)[axis] for axis in contracted)
            flops = 2 * math.prod(_shape(equation.outvars[0].aval)) * depth
            moved = sum(_bytes(x.aval) for x in equation.invars) + size
            products[Product(flops, moved, size)] += times
            operations += times
        elif name == "dynamic_update_slice":  # in place: only the update is written
            touched += times * _bytes(equation.invars[1].aval)
            operations += times
        elif name not in VIEWS | ALWAYS_FUSED:
            touched += times * size
            operations += times
    return Counts(products, touched, operations)


def _equations(jaxpr: Jaxpr, times: int) -> Iterator[tuple[JaxprEqn, int]]:
    """Yield every equation without an inner program, and how often it runs."""
    for equation in jaxpr.eqns:
        inner = [
            getattr(item, "jaxpr", item)
            for value in equation.params.values()
            for item in (value if isinstance(value, tuple | list) else (value,))
            if hasattr(getattr(item, "jaxpr", item), "eqns")
        ]
        if not inner:
            yield equation, times
        elif equation.primitive.name == "cond":
            yield from max((list(_equations(branch, times)) for branch in inner), key=len)
        elif equation.primitive.name.startswith("custom_vjp"):
            yield from _equations(inner[0], times)
        else:
            for program in inner:
                yield from _equations(program, times * equation.params.get("length", 1))


def _shape(aval: AbstractValue) -> tuple[int, ...]:
    return getattr(aval, "shape", ())


def _bytes(aval: AbstractValue) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return math.prod(_shape(aval)) * itemsize
