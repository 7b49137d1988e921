"""The sizes of the images: read from their headers, compared with what the annotations say."""

import concurrent.futures
import os
from collections.abc import Callable

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.images import read_size
from m2det_jax.data.reading.rows import Rows

ReadSize = Callable[[str], tuple[int, int]]

_CHUNK = 500  # images a thread looks at before it turns to the others


def read_sizes(
    rows: Rows, findings: Findings, *, num_threads: int = 8, read: ReadSize = read_size
) -> np.ndarray:
    """Reads the upright (width, height) of every image from its header: int32 [N, 2].

    An image that cannot be read is a finding and has size 0, 0. `read` is `images.read_size`, or
    that of a `SizeCache`.
    """
    paths = rows.image_paths
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        parts = pool.map(lambda chunk: _sizes_or_errors(chunk, read), chunks)
        found = [size for part in parts for size in part]
    sizes = np.zeros((len(paths), 2), np.int32)
    for i, size in enumerate(found):
        if isinstance(size, ValueError):
            missing = isinstance(size.__cause__, FileNotFoundError)
            findings.add(
                **rows.place_of_image(i),
                what=str(size),
                remedy=_missing_remedy(rows, i) if missing else "repair or remove the image",
                kind="no-image" if missing else "bad-image",
            )
        else:
            sizes[i] = size
    return sizes


def _sizes_or_errors(paths: list[str], read: ReadSize) -> list[tuple[int, int] | ValueError]:
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except ValueError as error:
            found.append(error)
    return found


def _missing_remedy(rows: Rows, image: int) -> str:
    folder, name = os.path.split(rows.image_paths[image])
    if os.path.exists(os.path.join(folder.rstrip(), name.strip())):
        return "remove the blanks around the path"
    return rows.missing_remedy


def check_declared_sizes(
    rows: Rows, sizes: np.ndarray, findings: Findings, on_bad_box: str
) -> None:
    """Notes where the annotations give an image another (width, height) than it has."""
    wrong = (rows.sizes != sizes).any(axis=1) & rows.sizes.all(axis=1) & sizes.all(axis=1)
    for image in np.flatnonzero(wrong):
        width, height = sizes[image].tolist()
        turned = rows.sizes[image].tolist() == [height, width]
        remedy = "correct it, and the boxes if they were drawn on another version of the image"
        if turned:
            remedy = (
                "boxes are in pixels of the upright image, after EXIF orientation: annotate it "
                "upright, or remove the orientation from the file"
            )
        findings.add(
            **rows.place_of_image(image),
            what=f"the size differs from that of the image, {width} x {height} pixels",
            value="{} x {}".format(*rows.sizes[image]),
            remedy=remedy,
            kind="size-differs",
            effect="refuse" if turned or on_bad_box == "error" else "note",
        )
