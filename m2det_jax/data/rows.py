"""Rows of annotations as their files give them, and their checks: a sound index, and findings.

Every format is parsed to `Rows`; `build_index` checks them against the images. What becomes of a
bad box is said by `on_bad_box`: "error" refuses the data set; "clip" cuts boxes that leave their
image to it and leaves out the others; "drop" leaves out both.

Letters: N images, K boxes of all images together.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from m2det_jax.data.errors import Findings
from m2det_jax.data.images import read_size
from m2det_jax.data.index import DetectionIndex
from m2det_jax.data.places import Place, Places
from m2det_jax.data.sizes import ReadSize, read_sizes

ON_BAD_BOX = ("error", "clip", "drop")

# How four numbers of a file become edges in pixels that count from 0, x2 and y2 exclusive:
# (matrix or None, shift) for numbers @ matrix + shift, and whether they are shares of the image's
# sides.
_XYWH = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
_CXCYWH = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], np.float64)
_STYLES: dict[str, tuple[np.ndarray | None, np.ndarray | float, bool]] = {
    "xyxy": (None, 0.0, False),
    "xywh": (_XYWH, 0.0, False),  # COCO
    "xyxy_from_1": (None, np.array([-1.0, -1.0, 0.0, 0.0]), False),  # VOC: both ends included
    "xyxy_share": (None, 0.0, True),  # Open Images, after reordering
    "cxcywh_share": (_CXCYWH, 0.0, True),  # YOLO
}

# How far a box may reach beyond its image by rounding alone, as (pixels, share of the side): two
# decimals of x and of width in COCO, six of centre and size in YOLO and of corners in Open Images.
ROUNDING = {"xywh": (0.011, 0.0), "xyxy_share": (0.0, 1e-6), "cxcywh_share": (0.0, 2e-6)}


_FILLED: Any = None  # of an attribute that __post_init__ fills


class ImagePlace(Place, total=False):
    """A place, with the image that it is about."""

    image: str


class BoxPlace(ImagePlace, total=False):
    """A place, with the image that it is about and what is written there."""

    value: str


@dataclasses.dataclass(eq=False)
class Rows:
    """The images and boxes of one split, checked for form only.

    Attributes:
        class_names: one name a class.
        image_paths: N absolute paths.
        places: of the N images and K boxes.
        numbers: float64 [K, 4], a box as written; `style` says what the numbers are.
        style: a key of _STYLES.
        images: int64 [K], the image of a box.
        labels: int64 [K], its class; -1: unknown (there is a finding), or any class (regions).
        regions: bool [K], crowds and "don't care" areas; given as None: none.
        difficult: bool [K]; given as None: none.
        areas: float64 [K], NaN where the file gives none; given as None: none.
        sizes: int64 [N, 2], (width, height) that the annotations give, 0 where they give none;
            given as None: none.
        class_ids, image_ids: the data set's own; (): none.
        names: what the four numbers are called in the format.
        missing_remedy: what to do about an image that is not there.
    """

    class_names: tuple[str, ...]
    image_paths: list[str]
    places: Places
    numbers: np.ndarray
    style: str
    images: np.ndarray
    labels: np.ndarray
    regions: np.ndarray = _FILLED
    difficult: np.ndarray = _FILLED
    areas: np.ndarray = _FILLED
    sizes: np.ndarray = _FILLED
    class_ids: tuple[int | str | None, ...] = ()
    image_ids: tuple[int | str, ...] = ()
    names: tuple[str, str, str, str] = ("x1", "y1", "x2", "y2")
    missing_remedy: str = "check the path"

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.regions is None:
            self.regions = np.zeros(count, np.bool_)
        if self.difficult is None:
            self.difficult = np.zeros(count, np.bool_)
        if self.areas is None:
            self.areas = np.full(count, np.nan)
        if self.sizes is None:
            self.sizes = np.zeros((len(self.image_paths), 2), np.int64)

    @property
    def is_normalised(self) -> bool:
        """Whether boxes are given as shares of the image's sides."""
        return _STYLES[self.style][2]

    @property
    def gives_sides(self) -> bool:
        """Whether the last two numbers are width and height, not a corner."""
        return "wh" in self.style or "cxcy" in self.style

    def edges(self, sizes: np.ndarray) -> np.ndarray:
        """Returns float64 [K, 4]: edges in pixels of images with these (width, height) [N, 2]."""
        return self._edges(self.numbers, sizes[self.images])

    def edges_of(self, row: int, sizes: np.ndarray) -> list[float]:
        """Returns x1, y1, x2, y2 in pixels of one box."""
        return self._edges(self.numbers[[row]], sizes[self.images[[row]]])[0].tolist()

    def _edges(self, numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        matrix, shift, is_share = _STYLES[self.style]
        with np.errstate(invalid="ignore", over="ignore"):
            edges = numbers if matrix is None else numbers @ matrix
            edges = edges + shift
            return edges * np.tile(sizes, 2) if is_share else edges

    def place_of_image(self, image: int) -> ImagePlace:
        """Returns where an image is named."""
        return {**self.places.of_image(image), "image": self.image_paths[image]}

    def place_of_box(self, row: int) -> BoxPlace:
        """Returns where a box is written, and as what."""
        image = self.images[row]
        value = ",".join(f"{value:.10g}" for value in self.numbers[row])
        place = self.places.of_box(image, row)
        return {**place, "image": self.image_paths[image], "value": value}

    def name_of_box(self, row: int) -> str:
        """Returns the name of a box among those of its file."""
        place = self.places.of_box(self.images[row], row)
        return place["item"] or f"line {place['line']}"


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

    Args:
        read: reads the size of an image: `images.read_size`, or that of a `SizeCache`.
    """
    if on_bad_box not in ON_BAD_BOX:
        raise ValueError(f"on_bad_box: expected one of {ON_BAD_BOX}, got {on_bad_box!r}")
    sizes = _check_images(
        rows, read_sizes(rows.image_paths, num_threads=num_threads, read=read), findings
    )
    _check_declared_sizes(rows, sizes, findings, on_bad_box)
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


def _check_images(
    rows: Rows, found: list[tuple[int, int] | ValueError], findings: Findings
) -> np.ndarray:
    """Notes images that cannot be read; returns int32 [N, 2], (width, height), 0 for these."""
    sizes = np.zeros((len(found), 2), np.int32)
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


def _missing_remedy(rows: Rows, image: int) -> str:
    folder, name = os.path.split(rows.image_paths[image])
    if os.path.exists(os.path.join(folder.rstrip(), name.strip())):
        return "remove the blanks around the path"
    return rows.missing_remedy


def _check_declared_sizes(
    rows: Rows, sizes: np.ndarray, findings: Findings, on_bad_box: str
) -> None:
    """Notes where the annotations give an image another (width, height) than it has."""
    wrong = (rows.sizes != sizes).any(axis=1) & rows.sizes.all(axis=1) & sizes.all(axis=1)
    for image in np.flatnonzero(wrong).tolist():
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


def _check_shapes(
    rows: Rows, boxes: np.ndarray, sizes: np.ndarray, findings: Findings, effect: str
) -> np.ndarray:
    """Notes boxes that are no boxes; returns where, bool [K]."""
    # Without the image's size a normalised box has no edges yet.
    known = sizes[rows.images].all(axis=1) | (not rows.is_normalised)
    finite = np.isfinite(rows.numbers).all(axis=1) & (np.isfinite(boxes).all(axis=1) | ~known)
    with np.errstate(invalid="ignore"):  # inf - inf: it has a finding already
        widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    for mask, kind, (what, remedy) in zip(
        (~finite, widths < 0, heights < 0, widths == 0, heights == 0),
        ("not-finite", "swapped", "swapped", "zero-area", "zero-area"),
        (("a coordinate is not finite", "give pixels"), *_shape_words(rows)),
        strict=True,
    ):
        for row in np.flatnonzero(mask & known & (finite | (kind == "not-finite"))).tolist():
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
    # Less than a thousandth of a pixel is the rounding of arithmetic: no finding.
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
    for row in np.flatnonzero(outside).tolist():
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
        # So it is where a program for annotation ignores the EXIF orientation of a photograph.
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
        places=rows.places.subset(np.arange(len(sizes)), objects),
    )
    return index if readable.all() else index.subset(np.flatnonzero(readable))


def _offsets(images: np.ndarray, num_images: int) -> np.ndarray:
    counts = np.bincount(images, minlength=num_images)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
