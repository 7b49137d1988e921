"""Cost of a compiled train step: floating-point operations, and memory of each device."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Operations of a step, and the bytes that each device needs for it.

    Attributes:
        flops: operations of convolutions and matrix products over all devices, two per
            multiply-add, counted in the traced program: forward pass, backward pass, and what
            rematerialisation computes again.
        compiler_flops: XLA's own count for one device, with elementwise operations, but without
            library calls (cuDNN, oneDNN) and without padding; 0 if XLA gives none.
        arguments: bytes of the state and the batch.
        outputs: bytes of the next state and the metrics.
        aliased: bytes of the outputs that reuse the memory of donated arguments.
        temporaries: bytes of activations, gradients and all else that exists only inside the step.
        code: bytes of the program; only accelerators store it in the memory of the device.
    """

    flops: int
    compiler_flops: int
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def memory(self) -> int:
        """Bytes that the step uses on each device."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def with_temporaries(self, factor: float) -> int:
        """Estimates the memory, in bytes, if the temporaries were `factor` times as large."""
        return self.memory - self.temporaries + round(factor * self.temporaries)


def read_cost(traced: jax.stages.Traced, compiled: jax.stages.Compiled) -> StepCost:
    """Reads the cost of a program from its traced and its compiled form."""
    memory: Any = compiled.memory_analysis()
    return StepCost(
        flops=count_jaxpr_flops(traced.jaxpr.jaxpr),
        compiler_flops=int(_analysis(compiled).get("flops", 0)),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


def _analysis(compiled: jax.stages.Compiled) -> dict[str, Any]:
    # Some versions of jax return a list of one, platforms without a cost model None.
    found = compiled.cost_analysis() or {}
    return found[0] if isinstance(found, list) else found


def describe(cost: StepCost, num_devices: int, available: int | None) -> str:
    """Returns a cost as two lines of text.

    Args:
        cost: the cost.
        num_devices: number of devices that share the step.
        available: bytes of a device that this process can use; None: unknown.
    """
    compiler = (
        f"; XLA counts {readable_flops(cost.compiler_flops)} on each device, without padding and "
        "library calls"
        if cost.compiler_flops > 0
        else ""
    )
    has = "the device does not report its memory"
    if available is not None:
        has = f"{100 * cost.memory / available:.3g}% of the {readable_bytes(available)} available"
    code = f", code {readable_bytes(cost.code)}" if cost.code else ""
    return (
        f"  {readable_flops(cost.flops)} per step over {num_devices} "
        f"{'devices' if num_devices > 1 else 'device'}: convolutions and matrix products of the "
        f"forward and backward pass, counted in the traced program{compiler}\n"
        f"  memory of each device, read from the compiled program: {readable_bytes(cost.memory)} "
        f"({has}): state and batch {readable_bytes(cost.arguments)}, temporaries (activations, "
        f"gradients) {readable_bytes(cost.temporaries)}, results {readable_bytes(cost.outputs)} "
        f"({readable_bytes(cost.aliased)} of them in the memory of the old state){code}"
    )


def readable_bytes(count: float) -> str:
    """Returns bytes as text with three digits: "512 B", "1.50 MiB", "71.2 GiB"."""
    return _readable(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def readable_flops(count: float) -> str:
    """Returns operations as text with three digits: "24.4 GFLOP"."""
    return _readable(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _readable(count: float, base: int, units: tuple[str, ...]) -> str:
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[unit]}"


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
    if name == "shard_map":  # inside are the shapes of one device
        return equation.params["mesh"].size * sum(inner)
    return equation.params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner: Any = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
