"""Cost of a compiled train step: floating-point operations, and memory of each device."""

import dataclasses
from typing import Any

import jax

from m2det_jax.run.flops import count_jaxpr_flops


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
