"""What the benchmarks share: the machine, fair timing, and figures as text.

Things that are compared are timed in turns within one run, so that a machine that gets slower or
busier does so for all of them.
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
    """Prints processor, cores that this process may use, and versions; first in every report.

    devices: also name what jax runs on. False leaves the devices alone, for child processes.
    """
    runtime.add_xla_flags()  # compiled as in training
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
    # Not cpu_count: a process bound to one core of two has one.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def seconds(work: Callable[[], object]) -> float:
    """Returns the wall time of a call, until the arrays that it returns are computed."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def take_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Times each work once a round, one after the other; returns the seconds of all rounds.

    Each is called once before, untimed: compilation, caches.
    """
    for work in works.values():
        jax.block_until_ready(work())
    samples = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            samples[name].append(seconds(work))
    return samples


def gemm(size: int) -> Callable[[], jax.Array]:
    """Returns a jitted product of two float32 matrices [size, size], to be timed."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((size, size), np.float32)) for _ in range(2))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b)


def default_gemm_size() -> int:
    """Returns a size that is long enough to be the peak and short enough not to be waited for."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def print_speed(name: str, flops: float, samples: Sequence[float], gemm: Sequence[float]) -> None:
    """Prints GFLOP/s of the median round beside the GEMM peak: the best of its rounds.

    Args:
        flops: floating-point operations of one round of `samples`, two per multiply-add.
        gemm: seconds of the rounds of `gemm(default_gemm_size())`.
    """
    speed = flops / statistics.median(samples)
    peak = 2 * default_gemm_size() ** 3 / min(gemm)
    print_figure(f"{name}, counted", f"{flops / 1e9:,.1f} GFLOP")
    print_figure(f"{name}, speed", f"{speed / 1e9:,.1f} GFLOP/s")
    print_figure("GEMM peak, same run", f"{peak / 1e9:,.1f} GFLOP/s (float32, best of the rounds)")
    print_figure("share of the GEMM peak", f"{100 * speed / peak:.1f} %")


def print_figure(name: str, text: str) -> None:
    """Prints one line of a report, at once."""
    print(f"{name:34s} {text}", flush=True)


def spread(samples: Sequence[float]) -> str:
    """Writes seconds of several rounds: "12.3 ms (12.1 ms to 13.0 ms, median of 5 rounds)"."""
    low, middle, high = min(samples), statistics.median(samples), max(samples)
    rounds = f"median of {len(samples)} rounds" if len(samples) > 1 else "1 round"
    return f"{readable(middle)} ({readable(low)} to {readable(high)}, {rounds})"


def readable(duration: float) -> str:
    """Writes seconds with three digits or so, as "1.23 ms", "12.3 ms", "1234 ms" or "12.3 s"."""
    if duration >= 10:
        return f"{duration:.1f} s"
    digits = 2 if duration < 0.01 else 1 if duration < 0.1 else 0
    return f"{1e3 * duration:.{digits}f} ms"


def peak_memory() -> int:
    """Returns the largest resident memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere in KiB
