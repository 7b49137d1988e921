"""Time of COCO's figures by hotcoco, as a share of the time of pycocotools.

    python -m benchmarks.metrics [--images 5000] [--detections 100] [--rounds 3]

Both evaluate the same drawn detections, in turn, from the arrays of the package to the twelve
figures. The figures must be equal to 1e-9. A share of at most a third is asked for.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import by_hotcoco, by_pycocotools

TARGET = 1 / 3
CLASSES = 80
OBJECTS = 7  # an image, about as in COCO
SIDE = 640


def drawn(
    images: int, detections: int, seed: int = 0
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Returns a data set of random boxes and detections, some of which are near an object."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, SIDE - 20, (count, 2))
        sides = np.exp(rng.uniform(np.log(8), np.log(SIDE / 2), (count, 2)))
        return np.concatenate([corner, np.minimum(corner + sides, SIDE)], 1).astype(np.float32)

    index = DetectionIndex(
        image_paths=tuple(f"/{i}.jpg" for i in range(images)),
        sizes=np.full((images, 2), SIDE, np.int32),
        boxes=boxes(images * OBJECTS),
        labels=rng.integers(0, CLASSES, images * OBJECTS).astype(np.int32),
        offsets=np.arange(images + 1, dtype=np.int64) * OBJECTS,
        class_names=tuple(map(str, range(CLASSES))),
    )
    found = []
    for i in range(images):
        near, labels = index.objects(i)
        count = min(len(near), detections)
        found.append(
            ImageDetections(
                i,
                np.concatenate(
                    [near[:count] + np.float32([0, 0, 3, 3]), boxes(detections - count)]
                ),
                rng.random(detections, np.float32),
                np.concatenate([labels[:count], rng.integers(0, CLASSES, detections - count)]),
            )
        )
    return index, found


def main(argv: Sequence[str] | None = None) -> None:
    """Times both evaluators in turn and prints the medians and their ratio."""
    parser = argparse.ArgumentParser(prog="benchmarks.metrics", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--rounds", type=int, default=3, help="each evaluates once a round")
    args = parser.parse_args(argv)
    data = drawn(args.images, args.detections)
    seconds: dict[str, list[float]] = {"hotcoco": [], "pycocotools": []}
    figures = {}
    for _ in range(args.rounds):
        for name, evaluator in (("hotcoco", by_hotcoco), ("pycocotools", by_pycocotools)):
            start = time.perf_counter()
            figures[name] = np.array(evaluator(*data).stats)
            seconds[name].append(time.perf_counter() - start)
    difference = np.abs(figures["hotcoco"] - figures["pycocotools"]).max()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{args.images} images x {args.detections} detections, {args.rounds} rounds")
    for name, median in medians.items():
        print(f"{name:<12}{median:8.3f} s  (AP {figures[name][0]:.6f})")
    print(f"largest difference of the twelve figures: {difference:.1e}")
    ratio = medians["hotcoco"] / medians["pycocotools"]
    print(f"ratio {ratio:.3f}, asked for at most {TARGET:.3f}")
    if difference > 1e-9 or ratio > TARGET:
        raise SystemExit("not reached")


if __name__ == "__main__":
    main()
