"""Reasoning by lowering: what CUDA would get of a step, counted on a machine without a GPU.

The programs are exported for CUDA (so that they are known to lower), and their operations and bytes
are counted in the traced program by kind of kernel. XLA fuses elementwise work and data movement
into fewer kernels: their bytes are counted as if each ran alone, and are at most what it moves.
"""

import math
from collections.abc import Callable, Iterator

import jax

from benchmarks.gpu.report import Report
from benchmarks.gpu.setup import Setup
from benchmarks.step_numbers import step_of
from m2det_jax.model import variable_shapes
from m2det_jax.run.cost import count_jaxpr_flops

EXPERIMENTS = {"vgg320": 32, "vgg512": 32, "vgg800": 16}  # and images of a step
KINDS = {
    "convolutions": {"conv_general_dilated"},
    "products": {"dot_general"},
    "reductions": {
        "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin",
        "cumsum", "reduce_prod", "sort", "top_k",
    },
    "movement": {
        "broadcast_in_dim", "reshape", "transpose", "concatenate", "slice", "dynamic_slice",
        "dynamic_update_slice", "gather", "scatter", "scatter-add", "pad", "rev", "squeeze",
        "iota", "copy", "expand_dims",
    },
}  # fmt: skip
# NVIDIA's data sheet of the H100 SXM: bfloat16 without sparsity, and the bandwidth of its memory.
PEAK, BANDWIDTH = 989.5e12, 3.35e12


def kind_of(primitive: str) -> str:
    """Returns the kind of kernel that a primitive of jax becomes."""
    return next((kind for kind, names in KINDS.items() if primitive in names), "elementwise")


def equations(jaxpr) -> Iterator:
    """Yields the equations of a program that compute; bodies of loops once."""
    for equation in jaxpr.eqns:
        inner = [
            getattr(item, "jaxpr", item)
            for value in equation.params.values()
            for item in (value if isinstance(value, (tuple, list)) else (value,))
            if hasattr(getattr(item, "jaxpr", item), "eqns")
        ]
        for program in inner:
            yield from equations(program)
        if not inner:
            yield equation


def size_of(variable) -> int:
    """Returns the bytes of an array of a traced program; 0 for what is none."""
    aval = variable.aval
    if not hasattr(aval, "shape") or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return 0
    return math.prod(aval.shape) * aval.dtype.itemsize


def count_kinds(jaxpr) -> dict[str, dict[str, float]]:
    """Returns kernels, bytes and operations by kind; elementwise: an operation a value."""
    found: dict[str, dict[str, float]] = {}
    for equation in equations(jaxpr):
        kind = kind_of(equation.primitive.name)
        entry = found.setdefault(kind, {"kernels": 0, "bytes": 0, "operations": 0})
        entry["kernels"] += 1
        entry["bytes"] += sum(size_of(v) for v in (*equation.invars, *equation.outvars))
        if kind in ("convolutions", "products"):
            one = type("OneEquation", (), {"eqns": [equation]})
            entry["operations"] += count_jaxpr_flops(one)
        elif kind != "movement":
            entry["operations"] += sum(math.prod(v.aval.shape) for v in equation.outvars)
    return found


def programs(setup: Setup, name: str, batch: int) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields the train step and the detection of an experiment in bfloat16, with their arguments.

    Jitted functions; the arguments are shapes.
    """
    overrides = ("model.dtype=bfloat16", f"batch_size={batch}", "eval.nms=soft_linear")
    config = setup.config(name, *overrides)
    detector, step, state, inputs = step_of(config)
    variables = variable_shapes(detector.model, detector.resize.image_size)
    yield "train step", jax.jit(step, donate_argnums=0), (state, inputs)
    yield "detection", detector.detect_fn(), (variables, inputs["image"])


def run(setup: Setup, report: Report) -> None:
    """Exports and counts every experiment."""
    chosen = {"vgg320": 2} if setup.reduced else EXPERIMENTS
    for name, batch in chosen.items():
        for what, function, args in programs(setup, name, batch):
            exported = jax.export.export(function, platforms=("cuda",))(*args)
            text = exported.mlir_module()
            row = f"{name}, {what}, batch {batch}"
            report.add(
                row,
                platform=exported.platforms[0],
                HLO_operations=text.count(" = stablehlo."),
                HLO_MB=len(exported.mlir_module_serialized) / 1e6,
            )
            kinds = count_kinds(jax.make_jaxpr(function)(*args).jaxpr)
            for kind, entry in kinds.items():
                report.add(f"{row}: {kind}", kernels=int(entry["kernels"]),
                           GB=entry["bytes"] / 1e9, GFLOP=entry["operations"] / 1e9,
                           ms_by_operations=1e3 * entry["operations"] / PEAK,
                           ms_by_bytes=1e3 * entry["bytes"] / BANDWIDTH)  # fmt: skip
