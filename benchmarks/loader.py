"""Speed of the training data loader, compared with Pillow alone, both on one thread.

    python -m benchmarks.loader --data ../shared/datasets/bccd [--size 320] [--rounds 20]

Measures images per second of the full augmentation (decode, expand, crop, resize, colour, mirror,
boxes, batching) and of `Image.open(path).resize((size, size), BILINEAR)` alone ("bare"). Both are
timed in turns in one run; the ratio is the median over the pairs.
"""

import argparse
import itertools
import pathlib
import statistics
from collections.abc import Sequence

from PIL import Image

from benchmarks import timing
from m2det_jax.data import AugmentSettings, TrainSettings, read_csv, train_batches

BATCH_SIZE = 8


def measure(data: pathlib.Path, *, size: int, rounds: int, batches: int) -> dict[str, list[float]]:
    """Returns the seconds of each round of `batches` batches: {"bare": ..., "augmented": ...}."""
    index = read_csv(data / "train.csv", data / "classes.csv")
    paths = itertools.cycle(index.image_paths)
    settings = TrainSettings(AugmentSettings((size, size)), batch_size=BATCH_SIZE, seed=0)
    pipeline = train_batches(index, settings, num_threads=0)

    def bare() -> None:
        for path in itertools.islice(paths, batches * BATCH_SIZE):
            with Image.open(path) as image:
                image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)

    def augmented() -> None:
        for _ in itertools.islice(pipeline, batches):
            pass

    with pipeline:
        return timing.take_turns({"bare": bare, "augmented": augmented}, rounds)


def print_rates(samples: dict[str, list[float]], images: int) -> None:
    """Prints images per second of both, and the median and spread of their ratio."""
    for name, durations in samples.items():
        rate = images / statistics.median(durations)
        timing.print_figure(name, f"{rate:.1f} images/s; a round {timing.spread(durations)}")
    pairs = zip(samples["bare"], samples["augmented"], strict=True)
    ratios = sorted(bare / augmented for bare, augmented in pairs)
    middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
    timing.print_figure("augmented / bare", f"{middle:.2f} ({low:.2f} to {high:.2f})")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default="../shared/datasets/bccd")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, default=4, help="batches per round")
    args = parser.parse_args(argv)
    timing.print_machine(devices=False)
    samples = measure(args.data, size=args.size, rounds=args.rounds, batches=args.batches)
    print_rates(samples, args.batches * BATCH_SIZE)


if __name__ == "__main__":
    main()
