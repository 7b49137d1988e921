"""Counting floating-point operations without running anything."""

import math
from collections.abc import Callable

import jax


def count_flops(function: Callable, *args) -> int:
    """Return the floating-point operations of the convolutions and matrix products in a function.

    Two for each multiply-add, padding counted as data. Elementwise work, below 1% of a
    convolutional network's, is left out. In a gradient, the zeros that a transposed convolution
    sets between its inputs do not count, so that it costs what the convolution did.

    Args:
        function: a function that jax can trace.
        args: its arguments, arrays or jax.ShapeDtypeStruct.

    Raises:
        ValueError: if the function has a `while` loop with convolutions or products inside.
    """
    return count_jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr_flops(jaxpr) -> int:
    """Return the operations of a program that is already traced (a Jaxpr); see `count_flops`."""
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    name = equation.primitive.name
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        # Output channels first in rhs_spec; each output value sums over all other kernel axes.
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[out_axis]
        return 2 * products // math.prod(equation.params["lhs_dilation"])
    if name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        lhs = equation.invars[0].aval.shape
        summed = math.prod(lhs[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * summed
    inner = [count_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "while" and any(inner):
        raise ValueError("cannot count a while loop: the number of rounds is not known")
    if name == "cond":
        return max(inner)
    if name == "shard_map":  # inside are the shapes of one device
        return equation.params["mesh"].size * sum(inner)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _inner_jaxprs(equation):
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
