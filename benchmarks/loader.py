"""Speed of the training data pipeline beside bare Pillow, both on one thread.

    python -m benchmarks.loader --data ../shared/datasets/bccd [--size 320] [--rounds 20]

Measures images per second of the full augmentation (decode, expand, crop, resize, colour, mirror,
boxes, batching) and of bare `Image.open(path).resize((size, size), BILINEAR)` of the whole image,
in turns within one run; the ratio is the median over the pairs.
"""

import argparse
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable

from PIL import Image

from m2det_jax.data import AugmentSettings, read_csv, train_batches

BATCH_SIZE = 8


def measure(data: pathlib.Path, *, size: int, rounds: int, batches: int) -> dict[str, float]:
    """Returns images per second of both, and the median over rounds of their ratio."""
    index = read_csv(data / "train.csv", data / "classes.csv")
    paths = itertools.cycle(index.image_paths)
    settings = AugmentSettings(image_size=(size, size))
    pipeline = train_batches(index, settings=settings, batch_size=BATCH_SIZE, seed=0, num_threads=0)

    def bare() -> None:
        for path in itertools.islice(paths, batches * BATCH_SIZE):
            with Image.open(path) as image:
                image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)

    def augmented() -> None:
        for _ in itertools.islice(pipeline, batches):
            pass

    with pipeline:
        bare(), augmented()  # warm: file cache, lazy imports
        pairs = [(_seconds(bare), _seconds(augmented)) for _ in range(rounds)]
    images = batches * BATCH_SIZE
    return {
        "bare_images_per_second": images / statistics.median(pair[0] for pair in pairs),
        "pipeline_images_per_second": images / statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(bare / pipeline for bare, pipeline in pairs),
    }


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default="../shared/datasets/bccd")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, default=4, help="batches a round")
    args = parser.parse_args()
    found = measure(args.data, size=args.size, rounds=args.rounds, batches=args.batches)
    for name, value in found.items():
        print(f"{name:28s} {value:8.2f}")


if __name__ == "__main__":
    main()
