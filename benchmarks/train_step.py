"""Speed of the training step of an experiment, compared with a matrix product (GEMM).

    python -m benchmarks.train_step [--config quickstart] [--batch_size N] [--rounds 10]

Every step uses the same random batch: targets, forward pass, backward pass, optimiser and moving
average (EMA), with a donated state as in training; no data loading. The counted operations are
those of three forward passes, because the backward pass multiplies with the weights and with the
activations; all else counts as nothing.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence

import jax

from benchmarks import experiment, timing
from m2det_jax.build import step_settings
from m2det_jax.config import Config
from m2det_jax.detector.detector import Detector
from m2det_jax.run.devices import place
from m2det_jax.run.state import TrainState, create_train_state
from m2det_jax.training.optimizer import make_optimizer, make_schedule
from m2det_jax.training.plan import make_optimizer_settings, make_plan
from m2det_jax.training.step import make_train_step

NUM_IMAGES = 1000  # of an assumed training set; the schedule needs a length


def build_step(
    config: Config, detector: Detector, variables: dict
) -> tuple[jax.stages.Wrapped, TrainState]:
    """Returns (the jitted step, which donates the state; the first state), on one device."""
    plan = make_plan(config, NUM_IMAGES)
    settings = make_optimizer_settings(config, plan, NUM_IMAGES)
    optimizer = make_optimizer(settings, detector.model.frozen_paths())
    step = make_train_step(detector, optimizer, make_schedule(settings), step_settings(config))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state = place(create_train_state(variables, optimizer), device)
    return jax.jit(step, donate_argnums=0), state


def endless(step: Callable, state: TrainState, batch: dict) -> Callable[[], jax.Array]:
    """Returns a function that does one more step on the same batch and returns its loss."""

    def next_step() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return next_step


def measure(config: Config, *, classes: int, objects: int, rounds: int) -> None:
    """Prints compile time, time per step, images per second, and the share of the GEMM peak."""
    batch_size = config.batch_size
    detector, variables = experiment.detector_with_variables(config, classes)
    jitted, state = build_step(config, detector, variables)
    batch = jax.device_put(
        {"image": experiment.random_images(detector, batch_size)}
        | experiment.random_objects(detector.resize.image_size, classes, batch_size, objects)
    )
    start = time.perf_counter()
    lowered = jitted.lower(state, batch)
    traced = time.perf_counter()
    step = lowered.compile()
    compiled = time.perf_counter()
    timing.print_figure("tracing", timing.readable(traced - start))
    timing.print_figure("compilation, nothing cached", timing.readable(compiled - traced))
    works = {
        "gemm": timing.gemm(timing.default_gemm_size()),
        "step": endless(step, state, batch),
    }
    samples = timing.take_turns(works, rounds)
    timing.print_figure(f"step, batch {batch_size}", timing.spread(samples["step"]))
    rates = sorted(batch_size / duration for duration in samples["step"])
    timing.print_figure("images per second", f"{rates[len(rates) // 2]:.2f}")
    flops = 3 * experiment.forward_flops(detector, variables, batch_size)
    timing.print_speed("step (3 x forward)", flops, samples["step"], samples["gemm"])
    timing.print_figure("peak memory of the process", f"{timing.peak_memory() / 2**30:.2f} GiB")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    experiment.add_arguments(parser, "quickstart")
    parser.add_argument("--batch_size", type=int, help="default: the experiment's")
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--objects", type=int, default=16, help="boxes in each image")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args(argv)
    config = experiment.load(args.config, args.set)
    config = dataclasses.replace(config, batch_size=args.batch_size or config.batch_size)
    jax.config.update("jax_enable_compilation_cache", False)
    timing.print_machine()
    print(f"{args.config}: {config.data.image_size}, {args.classes} classes, {config.model.dtype}")
    measure(config, classes=args.classes, objects=args.objects, rounds=args.rounds)


if __name__ == "__main__":
    main()
