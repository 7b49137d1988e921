"""What is checked of CSV rows once they are arrays: images, boxes and repetitions."""

import concurrent.futures
import os

import numpy as np

from m2det_jax.data.csv_rows import RowReader
from m2det_jax.data.errors import Findings
from m2det_jax.data.images import read_size


def read_sizes(rows: RowReader, findings: Findings, *, num_threads: int) -> np.ndarray:
    """Reads the upright (width, height) of every image from its header: int32 [N, 2].

    An image that cannot be read is a finding and has size 0, 0.
    """
    sizes = np.zeros((len(rows.image_paths), 2), np.int32)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        found = pool.map(_size_or_error, rows.image_paths, chunksize=64)
        for i, size in enumerate(found):
            if isinstance(size, ValueError):
                missing = isinstance(size.__cause__, FileNotFoundError)
                remedy = _missing_remedy(rows, i) if missing else "repair or remove the image"
                findings.add(rows.path, rows.image_lines[i], str(size), remedy)
            else:
                sizes[i] = size
    return sizes


def _size_or_error(path: str) -> tuple[int, int] | ValueError:
    try:
        return read_size(path)
    except ValueError as error:
        return error


def _missing_remedy(rows: RowReader, image: int) -> str:
    text = os.path.relpath(rows.image_paths[image], rows.folder)
    if os.path.exists(os.path.join(rows.folder, text.strip())):
        return "remove the blanks around the path"
    return f"relative paths start from the folder of the CSV file, {rows.folder}"


def check_rows(rows: RowReader, sizes: np.ndarray, findings: Findings) -> None:
    """Notes boxes that are no boxes, boxes outside their image, and rows that contradict."""
    with np.errstate(over="ignore"):
        boxes = rows.boxes.astype(np.float32)
    x1, y1, x2, y2 = boxes.T
    finite = np.isfinite(boxes).all(axis=1)
    swapped_x, swapped_y = finite & (x2 < x1), finite & (y2 < y1)
    flat_x, flat_y = finite & (x2 == x1), finite & (y2 == y1)
    whole = finite & (x2 > x1) & (y2 > y1)
    width, height = sizes[rows.images].T
    outside = (x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)
    outside &= whole & (width > 0)

    for mask, what, remedy in (
        (~finite, "a coordinate is not finite", "give pixels"),
        (swapped_x, "x2 is less than x1", "swap the corners: x1 is left, x2 is right"),
        (swapped_y, "y2 is less than y1", "swap the corners: y1 is top, y2 is bottom"),
        (flat_x, "the box has no width, x2 equals x1", "x2 is the right edge, exclusive"),
        (flat_y, "the box has no height, y2 equals y1", "y2 is the lower edge, exclusive"),
    ):
        for row in np.flatnonzero(mask):
            findings.add(rows.path, int(rows.lines[row]), f"{what} ({_box(rows, row)})", remedy)
    for row in np.flatnonzero(outside):
        _note_outside(rows, row, sizes[rows.images[row]], findings)
    _check_repeats(rows, boxes, findings)
    _check_empty_images(rows, findings)


def _note_outside(rows: RowReader, row: int, size: np.ndarray, findings: Findings) -> None:
    width, height = (int(side) for side in size)
    x1, y1, x2, y2 = rows.boxes[row]
    remedy = "clip the box to the image, or correct it"
    if min(x1, y1) >= 0 and x2 <= height and y2 <= width:
        # What comes of annotating a photograph in a program that ignores its EXIF orientation.
        remedy = (
            "it fits the image with width and height swapped: boxes are in pixels of the upright "
            "image, after EXIF orientation"
        )
    what = f"the box leaves the image, {width} x {height} pixels ({_box(rows, row)})"
    findings.add(rows.path, int(rows.lines[row]), what, remedy)


def _check_repeats(rows: RowReader, boxes: np.ndarray, findings: Findings) -> None:
    # NaN compares unequal to itself and inf has its own finding, so neither repeats here.
    keys = np.column_stack([rows.images, rows.labels, boxes.astype(np.float64)])
    order = np.lexsort([rows.lines, *keys.T])
    same = (keys[order][1:] == keys[order][:-1]).all(axis=1)
    first = 0
    for position in np.flatnonzero(same) + 1:
        row, previous = order[position], order[position - 1]
        first = first if position > 1 and same[position - 2] else previous
        if rows.labels[row] < 0:
            continue
        what = f"repeats line {rows.lines[first]} ({_box(rows, row)})"
        remedy = "remove one of them: same image, box and class"
        findings.add(rows.path, int(rows.lines[row]), what, remedy)


def _check_empty_images(rows: RowReader, findings: Findings) -> None:
    if not rows.empty_lines:
        return
    images, first_rows = np.unique(rows.images, return_index=True)
    with_boxes = dict(zip(images.tolist(), rows.lines[first_rows].tolist(), strict=True))
    for image, line in rows.empty_lines.items():
        if image in with_boxes:
            what = f"said to have no objects, but line {with_boxes[image]} gives it a box"
            what += f" ({rows.image_paths[image]})"
            findings.add(rows.path, line, what, "remove this row or the boxes")


def _box(rows: RowReader, row: int) -> str:
    return ",".join(f"{value:.10g}" for value in rows.boxes[row])
