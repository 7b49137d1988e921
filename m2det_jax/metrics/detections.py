"""Detections in the images of an index: their form, checks, and pixels of the original image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from m2det_jax.data import DetectionIndex

_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageDetections:
    """The detections in one image of an index, in any order.

    Attributes:
        image_id: position in the index.
        boxes: [n, 4], finite.
        scores: [n], finite.
        labels: int [n], class ids.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Returns xyxy boxes [n, 4] as COCO's x, y, width, height, float64 [n, 4]."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def part_of(
    index: DetectionIndex, detections: Iterable[ImageDetections], images: Sequence[int]
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Returns the index of some images, and their detections with the positions in it.

    Args:
        images: positions in the index, in the order that the new one has.
    """
    places = {image: place for place, image in enumerate(images)}
    moved = [
        replace(found, image_id=places[found.image_id])
        for found in detections
        if found.image_id in places
    ]
    return index.subset(images), moved


def check_detections(index: DetectionIndex, detections: Sequence[ImageDetections]) -> None:
    """Checks that detections fit an index.

    Raises:
        ValueError: if they do not, or are malformed.
    """
    seen: set[int] = set()
    for found in detections:
        where = f"detections of image {found.image_id}"
        if not 0 <= found.image_id < len(index.image_paths):
            raise ValueError(f"{where}: the index has images 0 to {len(index.image_paths) - 1}")
        if found.image_id in seen:
            raise ValueError(f"{where} are given twice; merge them into one ImageDetections")
        seen.add(found.image_id)
        boxes, scores, labels = map(np.shape, (found.boxes, found.scores, found.labels))
        if len(scores) != 1 or boxes != (*scores, 4) or labels != scores:
            raise ValueError(
                f"{where}: boxes [n, 4], scores [n], labels [n] expected,"
                f" got {boxes}, {scores}, {labels}"
            )
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ValueError(f"{where}: boxes and scores must be finite")
        outside = set(np.unique(found.labels).tolist()) - set(range(len(index.class_names)))
        if outside:
            raise ValueError(
                f"{where}: labels {sorted(outside)} are not among the"
                f" {len(index.class_names)} classes, 0 to {len(index.class_names) - 1}"
            )


def one_behind(dispatched: Iterable[_T]) -> Iterator[_T]:
    """Yields each element only after the next is made: the device computes while one is fetched."""
    waiting: list[_T] = []
    for element in dispatched:
        waiting.append(element)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def to_original(
    found: Any, batch: dict[str, np.ndarray], index: DetectionIndex
) -> list[ImageDetections]:
    """Maps a batch of Detections from network pixels to pixels of the original images.

    Args:
        found: Detections whose fields are numpy arrays [B, K, ...].
        batch: image_id [B], of which -1 is no image; scale and offset [B, 2], as `eval_batches`.
    """
    results = []
    for i, image_id in enumerate(batch["image_id"]):
        if image_id < 0:
            continue
        valid = found.valid[i]
        size = index.sizes[image_id]
        boxes = original_boxes(found.boxes[i][valid], batch["scale"][i], batch["offset"][i], size)
        results.append(
            ImageDetections(int(image_id), boxes, found.scores[i][valid], found.labels[i][valid])
        )
    return results


def original_boxes(
    boxes: np.ndarray, scale: np.ndarray, offset: np.ndarray, size: np.ndarray | tuple[int, int]
) -> np.ndarray:
    """Maps boxes [n, 4] from network pixels to pixels of the original image, cut to it.

    Args:
        scale, offset: [2], x and y; boxes are at original * scale + offset.
        size: (width, height) of the original image.
    """
    boxes = (boxes - np.tile(offset, 2)) / np.tile(scale, 2)
    return np.clip(boxes, 0, np.tile(size, 2))
