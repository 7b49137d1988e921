"""What a compiled train step costs: floating-point operations, and memory of each device."""

import dataclasses
from typing import Any

import jax

from m2det_jax.run.flops import count_jaxpr_flops


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Operations of a step, and the bytes that each device needs for it.

    Attributes:
      flops: of convolutions and products over all devices, two a multiply-add, counted in the
        traced program: forward, backward, and what rematerialisation does again.
      compiler_flops: XLA's own count for one device, with elementwise work, but without what it
        hands to libraries (cuDNN, oneDNN) and without padding; 0 where it does not tell.
      arguments: state and batch.
      outputs: the next state and the metrics.
      aliased: the part of the outputs that takes the place of donated arguments.
      temporaries: activations, gradients and whatever else lives only inside the step.
      code: of the program; only accelerators hold it in memory of the device.
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
        """Bytes of a device that are taken while the step runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def with_temporaries(self, factor: float) -> int:
        """Estimates the memory, in bytes, if the temporaries were `factor` times as large."""
        return self.memory - self.temporaries + round(factor * self.temporaries)


def read_cost(traced: jax.stages.Traced, compiled: jax.stages.Compiled) -> StepCost:
    """Reads the cost of a program in its traced and its compiled form."""
    memory = compiled.memory_analysis()
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
    # A list of one in some versions of jax, None on platforms without a cost model.
    found = compiled.cost_analysis() or {}
    return found[0] if isinstance(found, list) else found


def describe(cost: StepCost, num_devices: int, available: int | None) -> str:
    """Writes a cost as the lines of a report.

    Args:
      available: bytes that a device has for this process; None: it does not tell.
    """
    compiler = (
        f"; XLA counts {readable_flops(cost.compiler_flops)} on each device, without padding and "
        "library calls"
        if cost.compiler_flops > 0
        else ""
    )
    has = "the device does not tell what it has"
    if available is not None:
        has = f"{100 * cost.memory / available:.3g}% of the {readable_bytes(available)} it has"
    code = f", code {readable_bytes(cost.code)}" if cost.code else ""
    return (
        f"  {readable_flops(cost.flops)} a step over {num_devices} "
        f"{'devices' if num_devices > 1 else 'device'}, convolutions and products of forward and "
        f"backward pass, counted in the traced program{compiler}\n"
        f"  memory of each device, read from the compiled program: {readable_bytes(cost.memory)} "
        f"({has}): state and batch {readable_bytes(cost.arguments)}, temporaries (activations, "
        f"gradients) {readable_bytes(cost.temporaries)}, results {readable_bytes(cost.outputs)}, "
        f"of which {readable_bytes(cost.aliased)} in the place of the old state{code}"
    )


def readable_bytes(count: float) -> str:
    """Writes bytes with three digits: "512 B", "1.50 MiB", "71.2 GiB"."""
    return _readable(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def readable_flops(count: float) -> str:
    """Writes operations with three digits: "24.4 GFLOP"."""
    return _readable(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _readable(count: float, base: int, units: tuple[str, ...]) -> str:
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[unit]}"
