"""What a data set is to this package: image files with their boxes, as flat arrays.

Letters: N images, K boxes of all images together. Boxes are xyxy float32 in pixels of the upright
image (after EXIF orientation), x2 and y2 exclusive edges; sizes are (width, height).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionIndex:
    """A data set without its pixels; every source (CSV, ...) produces one.

    Attributes:
        image_paths: N absolute paths.
        sizes: int32 [N, 2], (width, height) of the images as seen, that is after EXIF orientation.
        boxes: float32 [K, 4], sorted by image.
        labels: int32 [K], indices into class_names.
        offsets: int64 [N + 1]; the boxes of image i are offsets[i]:offsets[i + 1].
        class_names: one name a class, in the order of the labels.
    """

    image_paths: tuple[str, ...]
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        num_images, num_boxes = len(self.image_paths), len(self.labels)
        expected = {
            "sizes": ((num_images, 2), np.int32),
            "boxes": ((num_boxes, 4), np.float32),
            "labels": ((num_boxes,), np.int32),
            "offsets": ((num_images + 1,), np.int64),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"DetectionIndex.{name}: expected {np.dtype(dtype)} {shape}, "
                    f"got {array.dtype} {array.shape}"
                )
        if self.offsets[0] != 0 or self.offsets[-1] != num_boxes or np.any(self.counts < 0):
            raise ValueError(
                f"DetectionIndex.offsets: expected to rise from 0 to {num_boxes}, "
                f"got {self.offsets[0]} to {self.offsets[-1]}"
            )
        if num_boxes and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(
                f"DetectionIndex.labels: expected 0..{len(self.class_names) - 1}, "
                f"got {self.labels.min()}..{self.labels.max()}"
            )

    @property
    def num_images(self) -> int:
        return len(self.image_paths)

    @property
    def counts(self) -> np.ndarray:
        """Number of boxes of every image, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def max_objects(self) -> int:
        """Number of boxes of the fullest image; 0 when there are none."""
        return int(self.counts.max(initial=0))

    def objects(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns boxes [n, 4] and labels [n] of one image."""
        rows = slice(self.offsets[image_id], self.offsets[image_id + 1])
        return self.boxes[rows], self.labels[rows]

    def subset(self, image_ids: Sequence[int] | np.ndarray) -> "DetectionIndex":
        """Returns an index of the named images only, in the order given.

        Raises:
            IndexError: an id is not in 0..num_images - 1.
        """
        ids = np.asarray(image_ids, np.int64).reshape(-1)
        wrong = ids[(ids < 0) | (ids >= self.num_images)]
        if wrong.size:
            raise IndexError(f"image id {wrong[0]} is not in 0..{self.num_images - 1}")
        counts = self.counts[ids]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # Row numbers of all chosen boxes: a running count, shifted to where each image begins.
        shift = np.repeat(self.offsets[ids] - offsets[:-1], counts)
        rows = np.arange(offsets[-1]) + shift
        return DetectionIndex(
            image_paths=tuple(self.image_paths[i] for i in ids),
            sizes=self.sizes[ids],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            offsets=offsets,
            class_names=self.class_names,
        )


def split_by_image(
    index: DetectionIndex, fraction: float, seed: int
) -> tuple[DetectionIndex, DetectionIndex]:
    """Splits at random into (the rest, about `fraction` of the images), a function of the seed.

    Both parts keep the order of the images and have at least one image.

    Raises:
        ValueError: fraction is not inside (0, 1), or there are fewer than two images.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction}")
    if index.num_images < 2:
        raise ValueError(f"cannot split {index.num_images} image(s) in two parts")
    held_out = min(max(round(fraction * index.num_images), 1), index.num_images - 1)
    order = np.random.default_rng(seed).permutation(index.num_images)
    return index.subset(np.sort(order[held_out:])), index.subset(np.sort(order[:held_out]))
