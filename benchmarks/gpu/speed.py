"""Speed of training on a GPU: steps alone and with real readers, memory, compilations, idle time.

B images of a batch; the batch is the largest power of two that fits.
"""

import contextlib
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.gpu.report import Report
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.trace import Busy, read_trace
from benchmarks.step_numbers import bytes_of, saved_bytes
from benchmarks.train_step import build_step
from benchmarks.vgg512_steps import count_compilations
from m2det_jax.model import init_variables
from m2det_jax.run import memory
from m2det_jax.run.cost import read_cost
from m2det_jax.training.prepare import open_batches, prepare

EXPERIMENTS = ("vgg320", "vgg512", "vgg800")
# The share of a device's memory that the estimate may take: cuDNN wants room for its workspaces.
SHARE, LARGEST_BATCH = 0.8, 256
ON_DEVICE = ("image", "boxes", "labels", "mask")


def gemm_peak(size: int, rounds: int) -> float:
    """Returns the operations a second of a bfloat16 product [size, size], the best round's."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    multiply = jax.jit(lambda a, b: a @ b)
    samples = timing.take_turns({"gemm": lambda: multiply(a, b)}, rounds)["gemm"]
    return 2 * size**3 / min(samples)


def largest_batch(state_bytes: int, gradient_bytes: int, image_bytes: int, limit: int) -> int:
    """Returns the largest power of two of images that a step should fit with, at least 1."""
    room = (SHARE * limit - state_bytes - gradient_bytes) / image_bytes
    batch = 1
    while batch * 2 <= min(room, LARGEST_BATCH):
        batch *= 2
    return batch


def fitting_step(setup: Setup, name: str, report: Report) -> tuple:
    """Compiles the step at the largest batch that runs: halves what does not.

    Returns:
        (run, step, state, first batch, operations of a step)
    """
    data = setup.drawn(512, (340, 460))

    def built(batch: int):
        config = setup.config(name, "model.dtype=bfloat16", f"batch_size={batch}", *data)
        run = prepare(config, setup.scratch / f"speed_{name}_{batch}")
        size = run.detector.resize.image_size
        variables = init_variables(run.detector.model, size, 0, prior=run.detector.class_prior)
        return config, run, variables

    config, run, variables = built(2)
    kept = saved_bytes(run.detector, variables, 2) - saved_bytes(run.detector, variables, 1)
    weights = bytes_of(variables["params"])
    limit = memory.available() or 2**34
    batch = 4 if setup.reduced else largest_batch(3 * weights, weights, kept, limit)
    while True:
        config, run, variables = built(batch)
        first = next_batch(setup, config, run)
        jitted, state = build_step(config, run.detector, variables)
        try:
            start = time.perf_counter()
            traced = jitted.trace(state, first)
            step = traced.lower().compile()
            compiled = time.perf_counter() - start
            cost = read_cost(traced, step)
            state, metrics = jax.block_until_ready(step(state, first))
            break
        except jax.errors.JaxRuntimeError as error:
            if not memory.is_exhausted(error) or batch == 1:
                raise
            report.add(name, **{f"out_of_memory_at_batch_{batch}": True})
            del jitted, state
            batch //= 2
    report.add(name, batch=batch, compile_seconds=compiled, loss=float(metrics["loss"]),
               planned_GiB=cost.memory / 2**30, limit_GiB=limit / 2**30)  # fmt: skip
    return config, run, step, state, first, cost.flops


def next_batch(setup: Setup, config, run) -> dict[str, jax.Array]:
    """Returns the first batch of the training data, on the device."""
    with contextlib.closing(open_batches(config, run, 0)) as batches:
        batch = next(batches)
    return jax.device_put({key: batch[key] for key in ON_DEVICE})


def ahead(batches: Iterator[dict], waited: list[float]) -> Iterator[dict]:
    """Puts each batch on the device while the step before it runs; notes the seconds waited."""
    while True:
        start = time.perf_counter()
        batch = next(batches)
        waited.append(time.perf_counter() - start)
        yield jax.device_put({key: batch[key] for key in ON_DEVICE})


def run_steps(step: Callable, state, batches: Iterator[dict], count: int):
    """Takes steps without waiting between them; returns (state, seconds, losses)."""
    losses, start = [], time.perf_counter()
    for _ in range(count):
        state, metrics = step(state, next(batches))
        losses.append(metrics["loss"])
    jax.block_until_ready((state, losses))
    return state, time.perf_counter() - start, [float(loss) for loss in losses]


def idle_time(step: Callable, state, batches: Iterator[dict], count: int, folder: pathlib.Path):
    """Returns (state, Busy): what the trace of a few steps says of the device, or None."""
    with jax.profiler.trace(str(folder)):
        state, _, _ = run_steps(step, state, batches, count)
    return state, read_trace(folder)


def measure(setup: Setup, name: str, peak: float, report: Report) -> None:
    """Reports one experiment."""
    config, run, step, state, first, flops = fitting_step(setup, name, report)
    batch, rounds = config.batch_size, 3 if setup.reduced else 20
    compilations = count_compilations()
    same = iter(lambda: first, None)
    state, _, _ = run_steps(step, state, same, 2)
    seconds = []
    for _ in range(rounds):
        state, took, _ = run_steps(step, state, same, 1)
        seconds.append(took)
    state, queued, _ = run_steps(step, state, same, rounds)
    report.add(name, ms_a_step=1e3 * queued / rounds, ms_a_step_waited_for=1e3 *
               statistics.median(seconds), images_per_second=batch * rounds / queued,
               TFLOPs=flops * rounds / queued / 1e12,
               share_of_GEMM_peak=flops * rounds / queued / peak)  # fmt: skip
    with contextlib.closing(open_batches(config, run, 0)) as batches:
        waited: list[float] = []
        real = ahead(batches, waited)
        state, _, _ = run_steps(step, state, real, 2)
        waited.clear()
        state, took, losses = run_steps(step, state, real, rounds)
        report.add(name, ms_a_step_real_data=1e3 * took / rounds,
                   images_per_second_real_data=batch * rounds / took,
                   share_waiting_for_data=sum(waited) / took, last_loss=losses[-1])  # fmt: skip
        state, busy = idle_time(step, state, real, 3, setup.scratch / f"trace_{name}")
    if isinstance(busy, Busy):
        report.add(name, idle_share=busy.idle_share, largest_gap_ms=busy.largest_gap_ms,
                   kernels_a_step=busy.kernels / 3)  # fmt: skip
    stats = jax.devices()[0].memory_stats() or {}
    again = sum(count for function, count in compilations.items() if "train_step" in function)
    used = stats.get("peak_bytes_in_use", 0) / 2**30
    report.add(name, used_GiB=used, compilations=1 + again)


def run(setup: Setup, report: Report) -> None:
    """Measures every experiment; those that there is no time for are left out."""
    peak = gemm_peak(256 if setup.reduced else 8192, 3 if setup.reduced else 20)
    report.add("GEMM bfloat16", TFLOPs=peak / 1e12, device=jax.devices()[0].device_kind)
    for name in EXPERIMENTS[:1] if setup.reduced else EXPERIMENTS:
        measure(setup, name, peak, report)
        jax.clear_caches()
