"""Index of a data set: image files with their boxes, as flat arrays.

Letters: N images, K boxes of all images together. Boxes are xyxy float32 in pixels of the upright
image (after EXIF orientation), x2 and y2 exclusive edges; sizes are (width, height).
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2det_jax.data.places import Place, Places
from m2det_jax.errors import InputError

_FILLED: Any = None  # of an attribute that __post_init__ fills


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionIndex:
    """A data set without its pixels; every format (CSV, COCO, VOC, ...) produces one.

    Attributes:
        image_paths: N absolute paths.
        sizes: int32 [N, 2], (width, height) of the images as seen, that is after EXIF orientation.
        boxes: float32 [K, 4], sorted by image: the objects, which are trained on and evaluated.
        labels: int32 [K], indices into class_names.
        offsets: int64 [N + 1]; the boxes of image i are offsets[i]:offsets[i + 1].
        class_names: one name a class, in the order of the labels.
        difficult: bool [K]; objects that are trained on, but that evaluation neither asks for nor
            counts against a detection (VOC's flag). Given as None: all False.
        areas: float32 [K], pixels; by them COCO's evaluation tells small from large. Given as
            None: the areas of the boxes.
        regions: float32 [R, 4], sorted by image: crowds, groups and "don't care" areas. They are
            no objects: training does not see them, and evaluation ignores detections in them that
            match no object, as COCO does with iscrowd. Given as None: there are none.
        region_labels: int32 [R], the class whose detections are ignored; -1: of every class.
        region_offsets: int64 [N + 1]; the regions of image i.
        class_ids: C category ids of the data set's own; (): 0..C-1. None: it has no such class.
        image_ids: N image identifiers of the data set's own; (): the positions 0..N-1.
        places: where images and boxes stand in the annotation files; None: unknown.
    """

    image_paths: tuple[str, ...]
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    class_names: tuple[str, ...]
    difficult: np.ndarray = _FILLED
    areas: np.ndarray = _FILLED
    regions: np.ndarray = _FILLED
    region_labels: np.ndarray = _FILLED
    region_offsets: np.ndarray = _FILLED
    class_ids: tuple[int | str | None, ...] = ()
    image_ids: tuple[int | str, ...] = ()
    places: Places | None = None

    def __post_init__(self) -> None:
        self._check_arrays(
            sizes=((self.num_images, 2), np.int32),
            boxes=((len(self.labels), 4), np.float32),
            labels=((len(self.labels),), np.int32),
            offsets=((self.num_images + 1,), np.int64),
        )
        self._fill_defaults()
        num_regions = len(self.region_labels)
        self._check_arrays(
            difficult=((len(self.labels),), np.bool_),
            areas=((len(self.labels),), np.float32),
            regions=((num_regions, 4), np.float32),
            region_labels=((num_regions,), np.int32),
            region_offsets=((self.num_images + 1,), np.int64),
        )
        _check_offsets("offsets", self.offsets, len(self.labels))
        _check_offsets("region_offsets", self.region_offsets, num_regions)
        _check_labels("labels", self.labels, 0, len(self.class_names))
        _check_labels("region_labels", self.region_labels, -1, len(self.class_names))
        for name, count in (("class_ids", len(self.class_names)), ("image_ids", self.num_images)):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(
                    f"DetectionIndex.{name}: expected none or {count}, "
                    f"got {len(getattr(self, name))}"
                )

    def _fill_defaults(self) -> None:
        num_boxes = len(self.labels)
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        defaults = {
            "difficult": np.zeros(num_boxes, np.bool_),
            "areas": sides[:, 0] * sides[:, 1],
            "regions": np.zeros((0, 4), np.float32),
            "region_labels": np.zeros(0, np.int32),
            "region_offsets": np.zeros(self.num_images + 1, np.int64),
        }
        for name, array in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, array)

    def _check_arrays(self, **expected: tuple[tuple[int, ...], type]) -> None:
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"DetectionIndex.{name}: expected {np.dtype(dtype)} {shape}, "
                    f"got {array.dtype} {array.shape}"
                )

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_paths)

    @property
    def counts(self) -> np.ndarray:
        """Number of boxes of every image, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def max_objects(self) -> int:
        """The most boxes of an image; 0 without images."""
        return int(self.counts.max(initial=0))

    def objects(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes [n, 4] and labels [n] of one image."""
        rows = slice(self.offsets[image_id], self.offsets[image_id + 1])
        return self.boxes[rows], self.labels[rows]

    def regions_of(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns regions [n, 4] and their labels [n] of one image."""
        rows = slice(self.region_offsets[image_id], self.region_offsets[image_id + 1])
        return self.regions[rows], self.region_labels[rows]

    def original_class_id(self, label: int) -> int | str | None:
        """Returns the data set's own category id of a label; None: it has no such class."""
        return self.class_ids[label] if self.class_ids else int(label)

    def original_image_id(self, image_id: int) -> int | str:
        """Returns the data set's own identifier of an image."""
        return self.image_ids[image_id] if self.image_ids else int(image_id)

    def subset(self, image_ids: Sequence[int] | np.ndarray) -> "DetectionIndex":
        """Returns an index of the named images only, in the order given.

        Raises:
            IndexError: if an id is not in 0..num_images - 1.
        """
        ids = np.asarray(image_ids, np.int64).reshape(-1)
        wrong = ids[(ids < 0) | (ids >= self.num_images)]
        if wrong.size:
            raise IndexError(f"image id {wrong[0]} is not in 0..{self.num_images - 1}")
        rows, offsets = _rows_of(self.offsets, ids)
        region_rows, region_offsets = _rows_of(self.region_offsets, ids)
        return dataclasses.replace(
            self,
            image_paths=tuple(self.image_paths[i] for i in ids),
            sizes=self.sizes[ids],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            offsets=offsets,
            difficult=self.difficult[rows],
            areas=self.areas[rows],
            regions=self.regions[region_rows],
            region_labels=self.region_labels[region_rows],
            region_offsets=region_offsets,
            image_ids=tuple(self.image_ids[i] for i in ids) if self.image_ids else (),
            places=self.places and self.places.subset(ids, rows),
        )

    def place_of_image(self, image_id: int) -> Place:
        """Returns file, line and item where an image is annotated; {} where it is unknown."""
        return self.places.of_image(image_id) if self.places else {}

    def place_of_box(self, row: int) -> Place:
        """Returns file, line and item of a box, a row of `boxes`; {} where it is unknown."""
        image_id = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return self.places.of_box(image_id, row) if self.places else {}


def _rows_of(offsets: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that belong to some images, in their order, and their new offsets."""
    counts = np.diff(offsets)[ids]
    new_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # Row numbers of all chosen boxes: a running count, shifted to where each image begins.
    shift = np.repeat(offsets[ids] - new_offsets[:-1], counts)
    return np.arange(new_offsets[-1]) + shift, new_offsets


def _check_offsets(name: str, offsets: np.ndarray, count: int) -> None:
    if offsets[0] != 0 or offsets[-1] != count or np.any(np.diff(offsets) < 0):
        raise ValueError(
            f"DetectionIndex.{name}: expected to rise from 0 to {count}, "
            f"got {offsets[0]} to {offsets[-1]}"
        )


def _check_labels(name: str, labels: np.ndarray, low: int, num_classes: int) -> None:
    if len(labels) and not low <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"DetectionIndex.{name}: expected {low}..{num_classes - 1}, "
            f"got {labels.min()}..{labels.max()}"
        )


def concatenate(indices: Sequence[DetectionIndex]) -> DetectionIndex:
    """Returns data sets with the same classes as one, in their order.

    The images' own ids are kept only where they all differ.

    Raises:
        InputError: if an image is in two of them.
    """
    if len(indices) == 1:
        return indices[0]
    paths = tuple(path for index in indices for path in index.image_paths)
    if len(set(paths)) < len(paths):
        twice = collections.Counter(paths).most_common(1)[0][0]
        raise InputError(f"two of the training sets have the image {twice}; leave one out")
    ids = tuple(index.original_image_id(i) for index in indices for i in range(index.num_images))
    known = all(index.image_ids for index in indices) and len(set(ids)) == len(ids)
    places = [index.places for index in indices if index.places]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(index, name) for index in indices])

    def offsets(name: str) -> np.ndarray:
        counts = np.concatenate([np.diff(getattr(index, name)) for index in indices])
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    return dataclasses.replace(
        indices[0],
        image_paths=paths,
        sizes=joined("sizes"),
        boxes=joined("boxes"),
        labels=joined("labels"),
        offsets=offsets("offsets"),
        difficult=joined("difficult"),
        areas=joined("areas"),
        regions=joined("regions"),
        region_labels=joined("region_labels"),
        region_offsets=offsets("region_offsets"),
        image_ids=ids if known else (),
        places=Places.joined(places) if len(places) == len(indices) else None,
    )


def split_by_image(
    index: DetectionIndex, fraction: float, seed: int
) -> tuple[DetectionIndex, DetectionIndex]:
    """Splits at random into (the rest, about `fraction` of the images), a function of the seed.

    Both parts keep the order of the images and have at least one image.

    Raises:
        ValueError: if fraction is not inside (0, 1), or there are fewer than two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
    if index.num_images < 2:
        raise InputError(
            f"cannot split {index.num_images} image(s) in two parts; give more images, or a "
            "validation set (config.data.val_csv or val_split)"
        )
    held_out = min(max(round(fraction * index.num_images), 1), index.num_images - 1)
    order = np.random.default_rng(seed).permutation(index.num_images)
    return index.subset(np.sort(order[held_out:])), index.subset(np.sort(order[:held_out]))
