"""Scaling estimate: cost of a training step, and expected efficiency on many GPUs.

    python -m benchmarks.scaling [--config vgg320 vgg512 vgg800] [--numbers FILE.json]

Compiles the train step of each experiment for 8 virtual CPU devices, with one image on each, and
reads from the program: operations, memory, and the bytes of all all-reduces. From these numbers and
the data sheet of a GPU it estimates weak scaling. docs/scaling.md has the result and the
assumptions. With --numbers, numbers are read from that file and new ones are added to it, because
compilation takes a minute or more per experiment. No step is run.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from benchmarks.step_numbers import numbers_of

_ROWS = (  # title, number, unit, digits
    ("GFLOP, traced program", "flops", 1e9, 1),
    ("GFLOP, XLA's count of the compiled program", "compiler_flops", 1e9, 1),
    ("parameters, MB (float32)", "parameters", 1e6, 1),
    ("moving averages, MB", "average", 1e6, 1),
    ("optimiser, MB", "optimizer", 1e6, 1),
    ("state in all, MB", "state", 1e6, 1),
    ("temporaries of a step, MB (compiled, float32)", "temporaries", 1e6, 1),
    ("temporaries without the gradients: activations, MB", "activations", 1e6, 1),
    ("kept for the backward pass, MB per image (traced, bfloat16)", "kept_bfloat16", 1e6, 1),
    ("all-reduced, MB (compiled)", "reduced", 1e6, 3),
    ("all-reduced without the gradients, MB", "beside", 1e6, 3),
    ("all-reduces under 64 KiB (compiled)", "small_reductions", 1, 0),
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU model in nodes. Units: bytes, seconds; bandwidths per GPU and direction."""

    name: str
    peak: float  # floating-point operations per second
    memory: float
    per_node: int
    within: float  # bandwidth inside a node
    between: float  # bandwidth to other nodes


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Assumptions, which neither a data sheet nor a program can tell."""

    utilisation: float = 0.3  # share of the peak that the step reaches on one GPU
    latency_within: float = 20e-6  # seconds of a small all-reduce inside a node
    latency_between: float = 50e-6  # seconds of a small all-reduce over several nodes
    backward: float = 2 / 3  # share of the step during which gradients can be transferred


# Data sheets "NVIDIA H100 Tensor Core GPU" (1,979 TFLOP/s in bfloat16 with sparsity, half without;
# 80 GB; NVLink 900 GB/s, both directions together) and "NVIDIA DGX H100" (8 GPUs, 8 ConnectX-7
# ports of 400 Gb/s).
H100 = Gpu("NVIDIA H100 SXM, DGX H100", 989.5e12, 80e9, 8, 450e9, 50e9)


def all_reduce_seconds(size: float, gpus: int, gpu: Gpu) -> float:
    """Returns the seconds of an all-reduce of `size` bytes, from the bandwidth alone.

    It uses rings: a reduce-scatter in each node, an all-reduce of the parts between the nodes, an
    all-gather in each node. In a ring of n, 2 (n - 1) / n of the bytes pass through every member.
    """
    inside = min(gpus, gpu.per_node)
    nodes = -(-gpus // gpu.per_node)
    within = 2 * (inside - 1) / inside * size / gpu.within
    return within + 2 * (nodes - 1) / nodes * size / inside / gpu.between


def memory_needed(numbers: dict[str, int], per_gpu: int) -> int:
    """Returns the estimated bytes of a step in bfloat16: state, gradients, kept activations."""
    return numbers["state"] + numbers["parameters"] + per_gpu * numbers["kept_bfloat16"]


def estimate(
    numbers: dict[str, int], per_gpu: int, gpus: int, gpu: Gpu, assumed: Assumed
) -> dict[str, float]:
    """Estimates a step with `per_gpu` images on each of `gpus` GPUs.

    Args:
        numbers: what `step_numbers.numbers_of` returns for an experiment.
        per_gpu: images on each GPU.
        gpus: number of GPUs.
        gpu: the GPU model.
        assumed: the assumptions.

    Returns:
        In seconds: "compute"; "gradients" (their all-reduce); "statistics" (the small all-reduces
        of batch statistics, one after the other, without overlap). As a share of the speed of one
        GPU, 0..1: "without" overlap (gradients wait for the end of the backward pass), and "with".
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
    """Returns the lines of the table of measured numbers, for one image per device."""
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for title, key, unit, digits in _ROWS:
        values = (f"{numbers[key] / unit:,.{digits}f}" for numbers in found.values())
        lines.append(f"| {title} | " + " | ".join(values) + " |")
    return lines


def memory_table(found: dict, per_gpu: int, gpu: Gpu) -> list[str]:
    """Returns the lines of the table of estimated memory; a tenth of each GPU is left free."""
    lines = [f"| experiment | GB with {per_gpu} images | most images on a GPU |", "|---" * 3 + "|"]
    for name, numbers in found.items():
        free = 0.9 * gpu.memory - memory_needed(numbers, 0)
        most = int(free // numbers["kept_bfloat16"])
        lines.append(f"| {name} | {memory_needed(numbers, per_gpu) / 1e9:.1f} | {most} |")
    return lines


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
    parser.add_argument("--numbers", type=pathlib.Path, help="JSON file that stores the numbers")
    parser.add_argument("--per_gpu", type=int, default=8, help="images per step on each GPU")
    for field in dataclasses.fields(Assumed):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    args = parser.parse_args(argv)
    found = numbers_of(args.config, args.numbers)
    for numbers in found.values():
        numbers["beside"] = numbers["reduced"] - numbers["parameters"]
        numbers["activations"] = numbers["temporaries"] - numbers["parameters"]
    assumed = Assumed(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Assumed)})
    print(*program_table(found), sep="\n")
    print(f"\n{H100.name}, {args.per_gpu} images on each GPU; estimated\n")
    print(*memory_table(found, args.per_gpu, H100), sep="\n", end="\n\n")
    print(*scaling_table(found, args.per_gpu, H100, assumed), sep="\n")


if __name__ == "__main__":
    main()
