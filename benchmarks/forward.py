"""Speed of the forward pass of an experiment, compared with a matrix product (GEMM).

    python -m benchmarks.forward [--config vgg512] [--batch_size 1] [--rounds 5]

Random weights, noise as images, raw outputs (no NMS). Operations of convolutions and matrix
products are counted, two per multiply-add. The GEMM and the model are timed in turns.
"""

import argparse
from collections.abc import Sequence

import jax

from benchmarks import experiment, timing
from m2det_jax.config import Config


def measure(config: Config, *, batch_size: int, classes: int, rounds: int) -> None:
    """Prints the time of a batch, the counted operations, and the share of the GEMM peak."""
    detector, variables = experiment.detector_with_variables(config, classes)
    images = jax.device_put(experiment.random_images(detector, batch_size))
    lowered = jax.jit(experiment.forward_pass(detector)).lower(variables, images)
    forward = lowered.compile()
    works = {
        "gemm": timing.gemm(timing.default_gemm_size()),
        "forward": lambda: forward(variables, images),
    }
    samples = timing.take_turns(works, rounds)
    flops = experiment.forward_flops(detector, variables, batch_size)
    timing.print_figure(f"forward, batch {batch_size}", timing.spread(samples["forward"]))
    timing.print_speed("forward", flops, samples["forward"], samples["gemm"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    experiment.add_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    config = experiment.load(args.config, args.set)
    timing.print_machine()
    print(f"{args.config}: {config.data.image_size}, {args.classes} classes, {config.model.dtype}")
    measure(config, batch_size=args.batch_size, classes=args.classes, rounds=args.rounds)


if __name__ == "__main__":
    main()
