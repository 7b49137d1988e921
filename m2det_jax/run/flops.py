"""Floating-point operations of a function, counted without running it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Returns the floating-point operations of the convolutions and matrix products of a function.

    A multiply-add counts as two; padding counts as data. Elementwise operations, less than 1 % of
    a convolutional network, are not counted. In a gradient, the zeros that a transposed
    convolution puts between its inputs do not count, so it costs as much as the convolution.

    Args:
        function: a function that jax can trace.
        args: its arguments, arrays or jax.ShapeDtypeStruct.

    Raises:
        ValueError: if the function has a `while` loop with convolutions or products inside.
    """
    return count_jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr_flops(jaxpr: Jaxpr) -> int:
    """Returns the operations of a traced program; see `count_flops`."""
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        # Output channels first in rhs_spec; each output value sums over all other kernel axes.
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        outputs = math.prod(_shape(equation.outvars[0]))
        products = outputs * math.prod(kernel) // kernel[out_axis]
        return 2 * products // math.prod(equation.params["lhs_dilation"])
    if name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        lhs = _shape(equation.invars[0])
        summed = math.prod(lhs[axis] for axis in contracted)
        return 2 * math.prod(_shape(equation.outvars[0])) * summed
    inner = [count_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError("cannot count a while loop: the number of iterations is not known")
    if name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner: Any = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
