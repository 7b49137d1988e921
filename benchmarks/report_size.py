"""Size, time and peak memory of the page of a report.

    python -m benchmarks.report_size [--images 100000] [--detections 100] [--classes 80]

Draws an index and the detections of a detector, and a few image files that all images share. Then
does what `m2det report` does after the detection: figures, contents and page. Prints the size of
the page, the seconds of each part and the peak resident memory of the process, including Python.
The exit status is 1 if the page or the memory exceeds its limit.
"""

import argparse
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from m2det_jax.config import default_config, resolve
from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.details import details
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import coco_metrics
from m2det_jax.pages import MAX_BYTES
from m2det_jax.report.page import render
from m2det_jax.report.run import Subject, assemble

_SIZE = (640, 480)
_FILES = 16
MAX_GIB = 4.0


def draw_files(folder: pathlib.Path) -> list[str]:
    """Writes images of noise, which JPEG cannot make small; returns their paths."""
    rng, paths = np.random.default_rng(0), []
    for i in range(_FILES):
        pixels = rng.integers(0, 256, (_SIZE[1], _SIZE[0], 3), np.uint8)
        paths.append(str(folder / f"{i}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, (560, 400), (count, 2)).astype(np.float32)
    return np.hstack([low, low + rng.uniform(8, 80, (count, 2)).astype(np.float32)])


def draw_index(
    paths: list[str], num_images: int, objects: int, num_classes: int, letters: int
) -> DetectionIndex:
    """Returns a data set with `objects` boxes an image and class names of `letters` letters."""
    rng = np.random.default_rng(1)
    count = num_images * objects
    return DetectionIndex(
        image_paths=tuple(paths[i % len(paths)] for i in range(num_images)),
        sizes=np.tile(np.int32(_SIZE), (num_images, 1)),
        boxes=_boxes(rng, count),
        labels=rng.integers(0, num_classes, count).astype(np.int32),
        offsets=np.arange(num_images + 1) * objects,
        class_names=tuple(f"class {k} ".ljust(letters, "猫") for k in range(num_classes)),
    )


def draw_detections(index: DetectionIndex, detections: int) -> list[ImageDetections]:
    """Returns one near each object, at times with another class, and others with low scores."""
    rng = np.random.default_rng(2)
    found = []
    for i in range(index.num_images):
        near, labels = index.objects(i)
        near, labels = near[:detections], labels[:detections]
        rest = detections - len(near)
        moved = near + rng.normal(0, 5, near.shape)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        other = rng.integers(0, len(index.class_names), len(near))
        right = rng.random(len(near)) < 0.9
        found.append(
            ImageDetections(
                i,
                np.concatenate([moved, _boxes(rng, rest)]).astype(np.float32),
                np.concatenate([rng.uniform(0.2, 1, len(near)), rng.beta(1, 8, rest)]),
                np.concatenate(
                    [np.where(right, labels, other), rng.integers(0, len(index.class_names), rest)]
                ).astype(np.int32),
            )
        )
    return found


def build(index: DetectionIndex, found: list[ImageDetections]) -> tuple[str, dict[str, float]]:
    """Returns the page of a report, and the seconds of each part."""
    subject = Subject(
        config=resolve(default_config()), step=1, name="drawn", source="drawn",
        training=np.bincount(index.labels, minlength=len(index.class_names)), history=[],
    )  # fmt: skip
    begin = time.perf_counter()
    metrics, figures = coco_metrics(index, found), details(index, found)
    middle = time.perf_counter()
    contents = assemble(subject, index, found, metrics, figures)
    later = time.perf_counter()
    page = render(contents)
    end = time.perf_counter()
    return page, {"figures": middle - begin, "contents": later - middle, "page": end - later}


def main(argv: list[str] | None = None) -> None:
    """Draws, builds and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--images", type=int, default=100_000)
    add("--objects", type=int, default=7, help="of an image")
    add("--detections", type=int, default=100, help="of an image")
    add("--classes", type=int, default=80)
    add("--letters", type=int, default=12, help="of the name of a class")
    add("--output", type=pathlib.Path, help="write the page to this file")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        paths = draw_files(pathlib.Path(temporary))
        index = draw_index(paths, options.images, options.objects, options.classes, options.letters)
        found = draw_detections(index, options.detections)
        page, seconds = build(index, found)
    size = len(page.encode())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if options.output:
        options.output.write_text(page, encoding="utf-8")
    parts = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
    print(
        f"{options.images} images, {options.classes} classes, {len(index.labels)} objects, "
        f"{options.images * options.detections} detections: page {size / 1e6:.2f} MB, {parts}, "
        f"peak {peak:.2f} GiB"
    )
    if size >= MAX_BYTES or peak >= MAX_GIB:
        sys.exit(f"above the limit of {MAX_BYTES / 1e6:g} MB or {MAX_GIB:g} GiB")


if __name__ == "__main__":
    main()
