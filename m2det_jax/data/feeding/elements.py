"""From the number of a sample to its arrays, as steps of a grain data set.

M objects (padded); sizes are (height, width).
"""

import dataclasses

import grain
import numpy as np

from m2det_jax.data.augment.augment import augment
from m2det_jax.data.augment.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.augment.transforms import map_boxes, place_whole, render
from m2det_jax.data.feeding.batches import Batch
from m2det_jax.data.feeding.sampling import EpochOrder, size_of_step
from m2det_jax.data.images import UnreadableImage
from m2det_jax.data.index import DetectionIndex

Size = tuple[int, int]
_RETRIES = 50  # of drawing the images that join in, where some cannot be read


class Visit(grain.transforms.MapWithIndex):
    """Number of a visit -> image number."""

    def __init__(self, order: EpochOrder) -> None:
        self._order = order

    def map_with_index(self, index: int, element: int) -> int:
        return self._order[index]


class AtSize(grain.transforms.MapWithIndex):
    """Image number -> (image number, number of the size that its step has)."""

    def __init__(self, sizes: tuple[Size, ...], seed: int, batch_size: int) -> None:
        self._sizes, self._seed, self._batch_size = sizes, seed, batch_size

    def map_with_index(self, index: int, element: int) -> tuple[int, int]:
        return element, size_of_step(self._sizes, self._seed, index // self._batch_size)


class Augment(grain.transforms.RandomMap):
    """Image number (with that of a size, if there are several) -> sample, padded to M objects."""

    def __init__(
        self,
        index: DetectionIndex,
        settings: AugmentSettings,
        sizes: tuple[Size, ...],
        max_objects: int,
    ) -> None:
        self._index, self._max_objects = index, max_objects
        self._settings = [dataclasses.replace(settings, image_size=size) for size in sizes]
        self._settings = self._settings or [settings]

    def random_map(self, element: int | tuple[int, int], rng: np.random.Generator) -> Batch:
        image_id, size = element if isinstance(element, tuple) else (element, 0)
        image, boxes, rows = augment(self._index, image_id, self._settings[size], rng)
        return _sample(image, boxes, self._index.labels[rows], image_id, self._max_objects)


class Replace(grain.transforms.RandomMap):
    """As Augment, with the next readable image of the index in place of one that is not."""

    def __init__(self, augment: Augment, index: DetectionIndex) -> None:
        self._augment, self._index = augment, index

    def random_map(self, element: int | tuple[int, int], rng: np.random.Generator) -> Batch:
        image_id, *size = element if isinstance(element, tuple) else (element,)
        errors = []
        for _ in range(self._index.num_images + _RETRIES):
            try:
                sample = self._augment.random_map((image_id, *size) if size else image_id, rng)
            except UnreadableImage as error:
                errors.append(error)
                # An image that mosaic, mixup or paste joined in is drawn anew.
                if error.path == self._index.image_paths[image_id]:
                    image_id = (image_id + 1) % self._index.num_images
                continue
            bad = self._index.image_paths.index(errors[0].path) if errors else -1
            return sample | {"replaced": np.int32(bad)}
        raise errors[0]


class Resize(grain.transforms.Map):
    """Image number -> evaluation sample, padded to M objects; numbers past the end are filling.

    skip_unreadable: an image that cannot be read is filling too, and named in `unreadable`.
    """

    def __init__(
        self,
        index: DetectionIndex,
        settings: ResizeSettings,
        max_objects: int,
        skip_unreadable: bool = False,
    ) -> None:
        self._index, self._settings, self._max_objects = index, settings, max_objects
        self._skip_unreadable = skip_unreadable

    def map(self, image_id: int) -> Batch:
        if image_id >= self._index.num_images:
            sample, unreadable = self._filling(), -1
        elif not self._skip_unreadable:
            return self._resized(image_id)
        else:
            try:
                sample, unreadable = self._resized(image_id), -1
            except UnreadableImage:
                sample, unreadable = self._filling(), image_id
        return sample | ({"unreadable": np.int32(unreadable)} if self._skip_unreadable else {})

    def _resized(self, image_id: int) -> Batch:
        index, settings = self._index, self._settings
        size = tuple(index.sizes[image_id].tolist())
        placement = place_whole(size, settings)
        image = render(index.image_paths[image_id], size, placement, settings)
        boxes, labels = map_boxes(*index.objects(image_id), placement)
        sample = _sample(image, boxes, labels, image_id, self._max_objects)
        return sample | _inverse(placement.scale, placement.offset)

    def _filling(self) -> Batch:
        image = np.full((*self._settings.image_size, 3), self._settings.fill, np.uint8)
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        return _sample(image, boxes, labels, -1, self._max_objects) | _inverse(
            np.ones(2), np.zeros(2)
        )


def _inverse(scale: np.ndarray, offset: np.ndarray) -> Batch:
    return {"scale": scale.astype(np.float32), "offset": offset.astype(np.float32)}


def _sample(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, image_id: int, max_objects: int
) -> Batch:
    count = len(labels)
    padded_boxes = np.zeros((max_objects, 4), np.float32)
    padded_labels = np.zeros(max_objects, np.int32)
    padded_boxes[:count], padded_labels[:count] = boxes, labels
    return {
        "image": image,
        "boxes": padded_boxes,
        "labels": padded_labels,
        "mask": np.arange(max_objects) < count,
        "image_id": np.int32(image_id),
    }
