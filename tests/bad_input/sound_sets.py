"""Smallest valid data set in each format; the test cases change files in it."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from m2det_jax.data import DetectionIndex, Source, load_image, read_dataset

Content = str | bytes | Callable[[Path], None] | None


def png(size=(40, 30), mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def _noise(size: tuple[int, int]) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def noisy_png() -> bytes:
    buffer = io.BytesIO()
    _noise((40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(size=(400, 300)) -> bytes:
    buffer = io.BytesIO()
    _noise(size).save(buffer, "JPEG")
    return buffer.getvalue()


def huge_png(width=100_000, height=100_000, bits=1, colour=0) -> bytes:
    """Returns a short PNG file whose header claims a large picture, by default 10 gigapixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packed = zlib.compress(bytes(100_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


XML = """<annotation><filename>a.png</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
</annotation>
"""
COCO = {
    "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 9, 10]}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
}
OPEN_HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
OPEN_ROW = "a,/m/1,0.025,0.25,0.0666666667,0.4,0"
KITTI = "cat -1 -1 -10 1 2 10 12 -1 -1 -1 -1000 -1000 -1000 -10"
YOLO = "0 0.1375 0.233333333 0.225 0.333333333"

# Each has one image with a cat at 1, 2, 10, 12.
SOUND: dict[str, dict[str, Content]] = {
    "csv": {
        "a.png": png(),
        "train.csv": "a.png,1,2,10,12,cat\n",
        "classes.csv": "cat,0\ndog,1\n",
    },
    "coco": {"train/a.png": png(), "annotations/instances_train.json": json.dumps(COCO, indent=1)},
    "voc": {
        "JPEGImages/a.png": png(),
        "Annotations/a.xml": XML,
        "ImageSets/Main/train.txt": "a\n",
    },
    "kitti": {"train/image_2/a.png": png(), "train/label_2/a.txt": KITTI + "\n"},
    "openimages": {
        "train/a.png": png(),
        "class-descriptions.csv": "/m/1,cat\n/m/2,dog\n",
        "train-annotations-bbox.csv": f"{OPEN_HEADER}\n{OPEN_ROW}\n",
    },
    "yolo": {
        "images/train/a.png": png(),
        "labels/train/a.txt": YOLO + "\n",
        "data.yaml": "train: images/train\nnames: [cat, dog]\n",
    },
}


def write_files(root: Path, files: dict[str, Content]) -> None:
    """Writes files below a folder; a file with content None is not written."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            path.write_bytes(content.encode())


def write(root: Path, format: str, changes: dict[str, Content]) -> Source:
    """Writes the valid data set with some files changed."""
    write_files(root, SOUND[format] | changes)
    if format == "csv":
        return Source("csv", str(root), "train.csv", "classes.csv")
    return Source(format, str(root), "train")


def outcome(root: Path, format: str, changes: dict[str, Content]) -> DetectionIndex | str:
    """Reads the data set and all its images; returns the index, or the error message."""
    source = write(root, format, changes)
    try:
        index = read_dataset(source)
        for path in index.image_paths:
            load_image(path)
    except ValueError as error:
        lines = str(error).replace(str(root) + os.sep, "").replace(str(root), ".").splitlines()
        return "\n".join(lines[1:] if lines[0].endswith("in the data:") else lines)
    return index
