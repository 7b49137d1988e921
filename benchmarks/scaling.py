"""What a step costs, and how well many GPUs would work on it together: numbers and an estimate.

    python -m benchmarks.scaling [--config vgg320 vgg512 vgg800] [--numbers FILE.json]

Compiles the train step of each experiment for 8 virtual CPU devices, with 1 and with 2 images a
device, and reads from the programs: operations, memory, and the bytes of all all-reduces. From
these and the data sheet of a GPU it estimates weak scaling; docs/scaling.md has the result and
what is assumed. With --numbers the figures are read from that file where it has them, and kept
there: compiling takes minutes for each program. No step is run.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import experiment
from m2det_jax import devices, prepare
from m2det_jax.detect import Detector, build_detector
from m2det_jax.evaluate import step_settings
from m2det_jax.model import variable_shapes
from m2det_jax.optimizer import make_optimizer, make_schedule
from m2det_jax.step_cost import read_cost
from m2det_jax.train_state import create_train_state
from m2det_jax.train_step import make_train_step

DEVICES, CLASSES, OBJECTS, NUM_IMAGES = 8, 80, 64, 1000
SMALL = 2**16  # an all-reduce of fewer bytes takes as long as one of none
_ITEM = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "f32": 4, "s32": 4, "u32": 4}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A kind of GPU in nodes; bytes and seconds, bandwidths in one direction for each GPU."""

    name: str
    peak: float  # floating-point operations a second
    memory: float
    per_node: int
    within: float  # bandwidth inside a node
    between: float  # bandwidth to other nodes


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no data sheet and no program tells."""

    utilisation: float = 0.3  # share of the peak that the step reaches on one GPU
    latency_within: float = 20e-6  # of a small all-reduce inside a node, seconds
    latency_between: float = 50e-6  # and over several nodes
    backward: float = 2 / 3  # share of the step behind which gradients can travel


# Data sheets "NVIDIA H100 Tensor Core GPU" (1,979 TFLOP/s in bfloat16 with sparsity, half without;
# 80 GB; NVLink 900 GB/s, both directions together) and "NVIDIA DGX H100" (8 GPUs, 8 ConnectX-7
# ports of 400 Gb/s).
H100 = Gpu("NVIDIA H100 SXM, DGX H100", 989.5e12, 80e9, 8, 450e9, 50e9)


def all_reduces(hlo: str) -> list[int]:
    """Returns the bytes of every all-reduce in the text of a compiled program."""
    found = re.findall(r"^ *(?:ROOT )?\S+ = (.*?) all-reduce(?:-start)?\(", hlo, re.MULTILINE)
    return [
        sum(
            _ITEM[kind] * math.prod(int(n) for n in shape.split(",") if n)
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
        )
        for result in found
    ]


def bytes_of(tree) -> int:
    """Returns the bytes of a tree of arrays or shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def saved_bytes(detector: Detector, variables: dict, batch_size: int) -> int:
    """Returns the bytes that the forward pass keeps for the backward pass, as traced."""
    images = jax.ShapeDtypeStruct((batch_size, *detector.resize.image_size, 3), np.uint8)

    def backward(params, batch_stats, images):
        def forward(params):
            return detector.model.apply(
                {"params": params, "batch_stats": batch_stats},
                detector.normalize(images), train=True, mutable=["batch_stats"],
            )  # fmt: skip

        return jax.vjp(forward, params, has_aux=True)[1]

    kept = jax.eval_shape(backward, variables["params"], variables["batch_stats"], images)
    return bytes_of(kept)


def read_program(config: ConfigDict, per_device: int) -> dict[str, int]:
    """Compiles the train step for DEVICES devices and reads its numbers; per device and step."""
    config.batch_size = DEVICES * per_device
    detector = build_detector(config, tuple(f"class {i}" for i in range(CLASSES)))
    settings = prepare.make_optimizer_settings(
        config, prepare.make_plan(config, NUM_IMAGES), NUM_IMAGES
    )
    optimizer = make_optimizer(settings, detector.model.frozen_paths())
    variables = variable_shapes(detector.model, detector.resize.image_size)
    state = jax.eval_shape(lambda v: create_train_state(v, optimizer), variables)
    shape = jax.ShapeDtypeStruct
    count, objects = config.batch_size, (config.batch_size, OBJECTS)
    batch = {
        "image": shape((count, *detector.resize.image_size, 3), np.uint8),
        "boxes": shape((*objects, 4), np.float32),
        "labels": shape(objects, np.int32),
        "mask": shape(objects, bool),
    }
    replicated, by_batch = devices.data_mesh()
    step = make_train_step(detector, optimizer, make_schedule(settings), step_settings(config))
    traced = jax.jit(
        step, donate_argnums=0, in_shardings=(replicated, by_batch),
        out_shardings=(replicated, replicated),
    ).trace(state, batch)  # fmt: skip
    compiled = traced.lower().compile()
    cost, reduced = read_cost(traced, compiled), all_reduces(compiled.as_text())
    return {
        "flops": cost.flops // DEVICES,
        "compiler_flops": cost.compiler_flops,
        "temporaries": cost.temporaries,
        "parameters": bytes_of(state.params),
        "average": bytes_of((state.ema_params, state.ema_batch_stats)),
        "optimizer": bytes_of(state.opt_state),
        "state": bytes_of(state),
        "reduced": sum(reduced),
        "small_reductions": sum(size < SMALL for size in reduced),
    }


def read_numbers(name: str) -> dict[str, int]:
    """Returns the numbers of an experiment: see `read_program`, and activations of an image."""
    one, two = (read_program(experiment.load(name), count) for count in (1, 2))
    half = experiment.load(name, ["model.dtype=bfloat16"])
    detector = build_detector(half, tuple(f"class {i}" for i in range(CLASSES)))
    variables = variable_shapes(detector.model, detector.resize.image_size)
    kept = [saved_bytes(detector, variables, count) for count in (1, 2)]
    return one | {
        "activations": two["temporaries"] - one["temporaries"],
        "kept_bfloat16": kept[1] - kept[0],
    }


def all_reduce_seconds(size: float, gpus: int, gpu: Gpu) -> float:
    """Returns the time of an all-reduce of `size` bytes, by bandwidth alone.

    Rings: reduce-scatter in each node, all-reduce of the shares between nodes, all-gather in each
    node. A ring of n moves 2 (n - 1) / n of the bytes through every member.
    """
    inside = min(gpus, gpu.per_node)
    nodes = -(-gpus // gpu.per_node)
    within = 2 * (inside - 1) / inside * size / gpu.within
    return within + 2 * (nodes - 1) / nodes * size / inside / gpu.between


def estimate(
    numbers: dict[str, int], per_gpu: int, gpus: int, gpu: Gpu, assumed: Assumed
) -> dict[str, float]:
    """Estimates a step of `per_gpu` images on each of so many GPUs.

    Returns:
      Seconds: compute, gradients (their all-reduce), statistics (the small all-reduces of batch
      statistics, one after the other, which nothing hides). Shares of the speed of one GPU, 0..1:
      without (gradients wait for the whole backward pass) and with overlap.
    """
    compute = per_gpu * numbers["flops"] / (gpu.peak * assumed.utilisation)
    gradients = all_reduce_seconds(numbers["reduced"], gpus, gpu)
    latency = assumed.latency_within if gpus <= gpu.per_node else assumed.latency_between
    statistics = numbers["small_reductions"] * latency if gpus > 1 else 0.0
    left = max(0.0, gradients - assumed.backward * compute)
    return {
        "compute": compute,
        "gradients": gradients,
        "statistics": statistics,
        "without": compute / (compute + statistics + gradients),
        "with": compute / (compute + statistics + left),
    }


def program_table(found: dict[str, dict[str, int]]) -> list[str]:
    """Returns the lines of the table of what was read, for one image on a device."""
    rows = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]

    def add(title: str, key: str, unit: float, digits: int = 1) -> None:
        values = (f"{numbers[key] / unit:,.{digits}f}" for numbers in found.values())
        rows.append(f"| {title} | " + " | ".join(values) + " |")

    add("GFLOP of an image and step, traced program", "flops", 1e9)
    add("the same, XLA's count of the compiled program", "compiler_flops", 1e9)
    add("parameters, MB (float32)", "parameters", 1e6)
    add("moving averages, MB", "average", 1e6)
    add("optimiser, MB", "optimizer", 1e6)
    add("state of a step in all, MB", "state", 1e6)
    add("temporaries with one image, MB (compiled, float32)", "temporaries", 1e6)
    add("more for each further image, MB (compiled, float32)", "activations", 1e6)
    add("kept for the backward pass, MB an image (traced, bfloat16)", "kept_bfloat16", 1e6)
    add("all-reduced in a step, MB (compiled)", "reduced", 1e6, 3)
    add("of it beside the gradients, MB", "beside", 1e6, 3)
    add("all-reduces under 64 KiB in a step (compiled)", "small_reductions", 1, 0)
    return rows


def scaling_table(found: dict, per_gpu: int, gpu: Gpu, assumed: Assumed) -> list[str]:
    """Returns the lines of the table of estimates."""
    rows = [
        "| experiment | GPUs | compute, ms | gradients, ms | statistics, ms | efficiency without "
        "overlap | with | images/s with |",
        "|---" * 8 + "|",
    ]
    for name, numbers in found.items():
        for gpus in (1, 8, 64, 512):
            e = estimate(numbers, per_gpu, gpus, gpu, assumed)
            speed = gpus * per_gpu * e["with"] / e["compute"]
            times = " | ".join(f"{1e3 * e[k]:.1f}" for k in ("compute", "gradients", "statistics"))
            shares = " | ".join(f"{100 * e[k]:.0f} %" for k in ("without", "with"))
            rows.append(f"| {name} | {gpus} | {times} | {shares} | {speed:,.0f} |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="+", default=["vgg320", "vgg512", "vgg800"])
    parser.add_argument("--numbers", type=pathlib.Path, help="JSON file to keep what was read in")
    parser.add_argument("--per_gpu", type=int, default=8, help="images of a step on each GPU")
    for field in dataclasses.fields(Assumed):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    args = parser.parse_args(argv)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    kept = args.numbers.exists() if args.numbers else False
    found = json.loads(args.numbers.read_text()) if kept else {}
    for name in args.config:
        if name not in found:
            found[name] = read_numbers(name)
            if args.numbers:
                args.numbers.write_text(json.dumps(found, indent=1) + "\n")
    found = {name: found[name] for name in args.config}
    for numbers in found.values():
        numbers["beside"] = numbers["reduced"] - numbers["parameters"]
    assumed = Assumed(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Assumed)})
    print(*program_table(found), sep="\n")
    print(f"\n{H100.name}, {args.per_gpu} images on each GPU; estimated\n")
    print(*scaling_table(found, args.per_gpu, H100, assumed), sep="\n")


if __name__ == "__main__":
    main()
