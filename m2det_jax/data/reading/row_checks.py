"""From annotations as written to a sound index: every image and box is checked.

What becomes of a bad box is said by `on_bad_box`: "error" refuses the data set; "clip" cuts boxes
that leave their image to it and leaves out what is no box at all; "drop" leaves out both.
"""

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.images import read_size
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.places import Places
from m2det_jax.data.reading.rows import ROUNDING, Rows
from m2det_jax.data.reading.size_checks import ReadSize, check_declared_sizes, read_sizes

ON_BAD_BOX = ("error", "clip", "drop")


def build_index(
    rows: Rows,
    findings: Findings,
    *,
    on_bad_box: str = "error",
    num_threads: int = 8,
    read: ReadSize = read_size,
) -> DetectionIndex:
    """Reads the header of every image, checks all boxes, and returns the sound part as an index.

    Images that cannot be read are left out, as are bad boxes unless they are clipped; each is a
    finding that says what becomes of it.
    """
    if on_bad_box not in ON_BAD_BOX:
        raise ValueError(f"on_bad_box: expected one of {ON_BAD_BOX}, got {on_bad_box!r}")
    sizes = read_sizes(rows, findings, num_threads=num_threads, read=read)
    check_declared_sizes(rows, sizes, findings, on_bad_box)
    with np.errstate(over="ignore"):
        boxes = rows.edges(sizes).astype(np.float32)
    readable = sizes[rows.images].all(axis=1)
    effect = _effect(on_bad_box)
    shapeless = _check_shapes(rows, boxes, sizes, findings, effect)
    # An unknown class is a finding of its own, and so is what else is wrong with its box.
    boxes, outside = _check_edges(rows, boxes, sizes, ~shapeless & readable, findings, on_bad_box)
    repeats = _check_repeats(rows, boxes, findings, effect)
    keep = readable & ~shapeless & ~outside & ~repeats & ((rows.labels >= 0) | rows.regions)
    return _index_of(rows, sizes, boxes, keep)


def _check_shapes(
    rows: Rows, boxes: np.ndarray, sizes: np.ndarray, findings: Findings, effect: str
) -> np.ndarray:
    """Notes boxes that are no boxes; returns where, bool [K]."""
    # Without the image's size a normalised box has no edges yet.
    known = sizes[rows.images].all(axis=1) | (not rows.is_normalised)
    finite = np.isfinite(rows.numbers).all(axis=1) & (np.isfinite(boxes).all(axis=1) | ~known)
    with np.errstate(invalid="ignore"):  # inf - inf is no news: it has a finding
        widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    for mask, kind, (what, remedy) in zip(
        (~finite, widths < 0, heights < 0, widths == 0, heights == 0),
        ("not-finite", "swapped", "swapped", "zero-area", "zero-area"),
        (("a coordinate is not finite", "give pixels"), *_shape_words(rows)),
        strict=True,
    ):
        for row in np.flatnonzero(mask & known & (finite | (kind == "not-finite"))):
            findings.add(
                **rows.place_of_box(row), what=what, remedy=remedy, kind=kind, effect=effect
            )
    return ~(finite & (widths > 0) & (heights > 0))


def _shape_words(rows: Rows) -> list[tuple[str, str]]:
    """Returns (what, remedy) of: x swapped, y swapped, no width, no height."""
    left, top, right, bottom = rows.names
    if rows.gives_sides:
        return [
            ("the width is negative", "give the left edge and the distance to the right one"),
            ("the height is negative", "give the upper edge and the distance to the lower one"),
            ("the box has no width", "correct or remove it"),
            ("the box has no height", "correct or remove it"),
        ]
    swapped = [
        (f"{b} is less than {a}", f"swap the corners: {a} is {low}, {b} is {high}")
        for a, b, low, high in ((left, right, "left", "right"), (top, bottom, "top", "bottom"))
    ]
    if rows.style == "xyxy_from_1":  # the same pixel twice is a box of one pixel there
        return swapped * 2
    return swapped + [
        (f"the box has no width, {right} equals {left}", f"{right} is the right edge, exclusive"),
        (f"the box has no height, {bottom} equals {top}", f"{bottom} is the lower edge, exclusive"),
    ]


def _check_edges(
    rows: Rows,
    boxes: np.ndarray,
    sizes: np.ndarray,
    keep: np.ndarray,
    findings: Findings,
    on_bad_box: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Notes boxes that leave their image; returns (boxes with those cut that may be, the others).

    Boxes that only the rounding of the format takes across the edge are always cut.
    """
    limits = np.tile(sizes[rows.images], 2).astype(np.float32)
    inside = np.clip(boxes, 0, limits)
    beyond = np.abs(boxes - inside).max(axis=1)
    pixels, share = ROUNDING.get(rows.style, (0.0, 0.0))
    rounded = keep & (beyond > 0) & (beyond <= pixels + share * limits.max(axis=1))
    # Less than a thousandth of a pixel is the rounding of arithmetic, not worth a word.
    if (beyond[rounded] > 1e-3).any():
        place = rows.place_of_image(int(rows.images[np.flatnonzero(rounded)[0]]))
        findings.add(
            place["file"],
            0,
            f"boxes reach beyond their image by the rounding of the format, at most "
            f"{beyond[rounded].max():.2g} pixels, and are cut to it",
            "nothing needs to be done",
            kind="rounding",
            value=f"{rounded.sum()} boxes",
            effect="clip",
        )
    outside = keep & (beyond > 0) & ~rounded
    overlapping = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    for row in np.flatnonzero(outside):
        cut = on_bad_box == "clip" and overlapping[row]
        _note_outside(rows, row, sizes, findings, "clip" if cut else _effect(on_bad_box))
    cut = rounded | (outside & overlapping & (on_bad_box == "clip"))
    return np.where(cut[:, None], inside, boxes), outside & ~cut


def _effect(on_bad_box: str) -> str:
    return "refuse" if on_bad_box == "error" else "drop"


def _note_outside(rows: Rows, row: int, sizes: np.ndarray, findings: Findings, effect: str) -> None:
    width, height = (int(side) for side in sizes[rows.images[row]])
    x1, y1, x2, y2 = rows.edges_of(row, sizes)
    remedy = "clip the box to the image, or correct it"
    if rows.style == "xyxy_from_1" and min(x1, y1) == -1:
        remedy = "VOC counts pixels from 1: add 1 to what was counted from 0, or clip the box"
    elif not rows.is_normalised and min(x1, y1) >= 0 and x2 <= height and y2 <= width:
        # What comes of annotating a photograph in a program that ignores its EXIF orientation.
        remedy = (
            "it fits the image with width and height swapped: boxes are in pixels of the upright "
            "image, after EXIF orientation"
        )
    what = f"the box leaves the image, {width} x {height} pixels"
    findings.add(**rows.place_of_box(row), what=what, remedy=remedy, kind="outside", effect=effect)


def _check_repeats(rows: Rows, boxes: np.ndarray, findings: Findings, effect: str) -> np.ndarray:
    """Notes objects that are there twice; returns the later ones, bool [K]."""
    # NaN compares unequal to itself and inf has its own finding, so neither repeats here.
    keys = np.column_stack([rows.images, rows.labels, rows.regions, boxes.astype(np.float64)])
    order = np.lexsort([np.arange(len(keys)), *keys.T])
    same = (keys[order][1:] == keys[order][:-1]).all(axis=1)
    repeats = np.zeros(len(keys), np.bool_)
    first = 0
    for position in np.flatnonzero(same) + 1:
        row, previous = order[position], order[position - 1]
        first = first if position > 1 and same[position - 2] else previous
        # An area may be ignored for two reasons, and an unknown class is a finding of its own.
        if rows.labels[row] < 0 or rows.regions[row]:
            continue
        repeats[row] = True
        findings.add(
            **rows.place_of_box(row),
            what=f"repeats {rows.name_of_box(first)}",
            remedy="remove one of them: same image, box and class",
            kind="duplicate",
            effect=effect,
        )
    return repeats


def _index_of(rows: Rows, sizes: np.ndarray, boxes: np.ndarray, keep: np.ndarray) -> DetectionIndex:
    """Returns the boxes that are kept, and the images that can be read, as an index."""
    readable = sizes.all(axis=1)
    objects = np.flatnonzero(keep & ~rows.regions)
    objects = objects[np.argsort(rows.images[objects], kind="stable")]
    regions = np.flatnonzero(keep & rows.regions)
    regions = regions[np.argsort(rows.images[regions], kind="stable")]
    found = boxes[objects]
    sides = found[:, 2:] - found[:, :2]
    areas = rows.areas[objects].astype(np.float32)
    index = DetectionIndex(
        image_paths=tuple(rows.image_paths),
        sizes=sizes,
        boxes=found,
        labels=rows.labels[objects].astype(np.int32),
        offsets=_offsets(rows.images[objects], len(sizes)),
        class_names=rows.class_names,
        difficult=rows.difficult[objects],
        areas=np.where(np.isnan(areas), sides[:, 0] * sides[:, 1], areas),
        regions=boxes[regions],
        region_labels=rows.labels[regions].astype(np.int32),
        region_offsets=_offsets(rows.images[regions], len(sizes)),
        class_ids=rows.class_ids,
        image_ids=rows.image_ids,
        places=Places(
            files=tuple(rows.files),
            image_files=rows.image_files,
            image_lines=rows.image_lines,
            box_lines=rows.lines[objects],
            items=(rows.items,) * len(rows.files),
            image_items=rows.image_items,
            box_items=None if rows.box_items is None else rows.box_items[objects],
        ),
    )
    return index if readable.all() else index.subset(np.flatnonzero(readable))


def _offsets(images: np.ndarray, num_images: int) -> np.ndarray:
    counts = np.bincount(images, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
