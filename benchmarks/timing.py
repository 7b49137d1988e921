"""Timing for the benchmarks: the machine, functions timed in turns, and numbers as text.

Functions that are compared are timed in turns in one run. If the machine becomes slower, it does so
for all of them.
"""

import importlib.metadata
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from m2det_jax import runtime


def print_machine(*, devices: bool = True) -> None:
    """Prints the processor, the number of usable cores, and versions; the start of every report.

    Args:
        devices: print the devices of jax too. False does not touch the devices, which is needed if
            child processes use them.
    """
    runtime.add_xla_flags()  # the compiler flags of training
    versions = f"jax {importlib.metadata.version('jax')}, Python {platform.python_version()}"
    print(f"machine: {_processor()}, cores: {_num_cores()}; {versions}", flush=True)
    if devices and jax.default_backend() != "cpu":
        print(f"device: {jax.devices()[0].device_kind}", flush=True)


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _num_cores() -> int:
    # Not cpu_count: a process that is bound to one of two cores has only one.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def seconds(work: Callable[[], object]) -> float:
    """Returns the wall time of a call in seconds, until its results are computed."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def take_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times each function once per round, one after the other.

    Each function is first called once without timing, for compilation and caches.

    Returns:
        The seconds of all rounds, by name.
    """
    for work in works.values():
        jax.block_until_ready(work())
    samples = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            samples[name].append(seconds(work))
    return samples


def gemm(size: int) -> Callable[[], jax.Array]:
    """Returns a function that multiplies two float32 matrices [size, size], jitted."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((size, size), np.float32)) for _ in range(2))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b)


def default_gemm_size() -> int:
    """Returns a matrix size that is large enough to reach the peak speed and quick to run."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def print_speed(name: str, flops: float, samples: Sequence[float], gemm: Sequence[float]) -> None:
    """Prints GFLOP/s of the median round, and of the GEMM peak, which is its best round.

    Args:
        name: name of the timed function.
        flops: floating-point operations of one round, two per multiply-add.
        samples: seconds of the rounds.
        gemm: seconds of the rounds of `gemm(default_gemm_size())`.
    """
    speed = flops / statistics.median(samples)
    peak = 2 * default_gemm_size() ** 3 / min(gemm)
    print_figure(f"{name}, counted", f"{flops / 1e9:,.1f} GFLOP")
    print_figure(f"{name}, speed", f"{speed / 1e9:,.1f} GFLOP/s")
    print_figure("GEMM peak, same run", f"{peak / 1e9:,.1f} GFLOP/s (float32, best of the rounds)")
    print_figure("share of the GEMM peak", f"{100 * speed / peak:.1f} %")


def print_figure(name: str, text: str) -> None:
    """Prints one line of a report, without buffering."""
    print(f"{name:34s} {text}", flush=True)


def spread(samples: Sequence[float]) -> str:
    """Returns seconds as text: "12.3 ms (12.1 ms to 13.0 ms, median of 5 rounds)"."""
    low, middle, high = min(samples), statistics.median(samples), max(samples)
    rounds = f"median of {len(samples)} rounds" if len(samples) > 1 else "1 round"
    return f"{readable(middle)} ({readable(low)} to {readable(high)}, {rounds})"


def readable(duration: float) -> str:
    """Returns seconds as text: "1.23 ms", "12.3 ms", "1234 ms" or "12.3 s"."""
    if duration >= 10:
        return f"{duration:.1f} s"
    digits = 2 if duration < 0.01 else 1 if duration < 0.1 else 0
    return f"{1e3 * duration:.{digits}f} ms"


def peak_memory() -> int:
    """Returns the peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB elsewhere
