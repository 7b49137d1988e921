"""Time and memory of reading a large data set.

    python -m benchmarks.index_size [--images 120000] [--boxes 1000000] [--rounds 1]

Writes random annotations of that size, as CSV and as COCO JSON, and a small JPEG file for every
image. `read_dataset` reads each format in a separate process: annotations, the header of every
image, and all checks. Prints seconds and the peak resident memory of the process, including Python.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

_SIZE = (640, 480)
_CLASSES = 80


def draw(folder: pathlib.Path, num_images: int, num_boxes: int) -> None:
    """Writes the images and both annotation files."""
    (folder / "train").mkdir(parents=True)
    first = folder / "train" / "000000.jpg"
    Image.new("RGB", _SIZE).save(first)
    content = first.read_bytes()
    for i in range(1, num_images):
        (folder / "train" / f"{i:06d}.jpg").write_bytes(content)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 400, (num_boxes, 2)).round(2)
    sides = rng.uniform(1, 79, (num_boxes, 2)).round(2)
    # Every image has a box, so that the CSV file names all of them.
    more = rng.integers(0, num_images, num_boxes - num_images)
    images = np.sort(np.r_[np.arange(num_images), more])
    labels = rng.integers(0, _CLASSES, num_boxes)
    rows = list(zip(images.tolist(), labels.tolist(), low.tolist(), sides.tolist(), strict=True))
    with open(folder / "train.csv", "w") as file:
        file.writelines(
            f"train/{i:06d}.jpg,{x},{y},{x + w:.2f},{y + h:.2f},class {k}\n"
            for i, k, (x, y), (w, h) in rows
        )
    (folder / "classes.csv").write_text("".join(f"class {k},{k}\n" for k in range(_CLASSES)))
    described = {
        "images": [
            {"id": i + 1, "file_name": f"{i:06d}.jpg", "width": _SIZE[0], "height": _SIZE[1]}
            for i in range(num_images)
        ],
        "annotations": [
            {"id": n, "image_id": i + 1, "category_id": k + 1, "bbox": [x, y, w, h],
             "area": w * h, "iscrowd": 0}
            for n, (i, k, (x, y), (w, h)) in enumerate(rows, 1)
        ],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(_CLASSES)],
    }  # fmt: skip
    (folder / "annotations").mkdir()
    with open(folder / "annotations" / "instances_train.json", "w") as file:
        json.dump(described, file)


def read(folder: pathlib.Path, format: str) -> None:
    """Reads one format and prints its time and memory."""
    from m2det_jax.data import Source, read_dataset

    source = Source(format, str(folder), "train")
    if format == "csv":
        source = Source("csv", str(folder), "train.csv", "classes.csv")
    begin = time.perf_counter()
    index = read_dataset(source)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{format:<5} {index.num_images} images, {len(index.boxes)} boxes: {seconds:.1f} s, "
        f"peak {peak:.2f} GiB",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    """Writes the files and reads them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1, help="readings of each format")
    parser.add_argument("--folder", help="folder for the files; default: a temporary one")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.read:
        read(pathlib.Path(options.folder), options.read)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = pathlib.Path(temporary) / "drawn"
        draw(folder, options.images, options.boxes)
        for format in ("csv", "coco") * options.rounds:
            command = [sys.executable, "-m", "benchmarks.index_size", "--folder", str(folder)]
            subprocess.run([*command, "--read", format], check=True)


if __name__ == "__main__":
    main()
