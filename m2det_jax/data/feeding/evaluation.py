"""Batches for evaluation: every image of an index once, in order, resized only.

B images of one process, M objects (padded); sizes are (height, width).
"""

import grain
import numpy as np

from m2det_jax.data.augment.canvas import map_boxes
from m2det_jax.data.augment.drawing import draw_image, map_image
from m2det_jax.data.augment.settings import ResizeSettings
from m2det_jax.data.feeding.batches import (
    Batches,
    SampleArrays,
    check_max_objects,
    check_reading,
    check_share,
    pad_sample,
)
from m2det_jax.data.feeding.workers import read_ahead
from m2det_jax.data.images import UnreadableImage
from m2det_jax.data.index import DetectionIndex


def eval_batches(
    index: DetectionIndex,
    *,
    resize: ResizeSettings,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    max_objects: int | None = None,
    on_bad_image: str = "error",
) -> Batches:
    """Yields every image of an index once, in order, resized only.

    Args:
        batch_size: images of a batch over all processes; this process gets its share.
        max_objects: M; None: `padded_objects(index)`.
        on_bad_image: "error": an image that cannot be read ends the iteration. "skip": filling, as
            in the last batch, stands in its place.

    Returns:
        Batches as those of `train_batches`, and scale, offset float32 [B, 2] (x, y), by which
        boxes_original = (boxes - offset) / scale. The last batch is filled with images of the fill
        colour that have image_id -1, no objects, scale 1 and offset 0. Every process gets the same
        number of batches. With "skip" also unreadable int32 [B], the image that could not be read
        and has filling in its place, or -1.

    Raises:
        ValueError: if an argument is out of range; from next(): if an image cannot be read.
        ChildProcessError: from next(): if a worker process died.
    """
    max_objects = check_max_objects(index, None, max_objects)
    share = check_share(index, batch_size, process_index, process_count)
    check_reading(num_workers, num_threads)
    padded = -(-index.num_images // batch_size) * batch_size
    sample = Resize(index, resize, max_objects, skip_unreadable=on_bad_image == "skip")
    samples = grain.MapDataset.range(padded).map(sample)
    batches = samples[process_index::process_count].batch(share, drop_remainder=True)
    return Batches(read_ahead(batches, num_workers, num_threads))


class Resize(grain.transforms.Map):
    """Image number -> evaluation sample, padded to M objects; numbers past the end are filling.

    Args:
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

    def map(self, image_id: int) -> SampleArrays:
        """Returns the arrays of one sample."""
        if image_id >= self._index.num_images:
            sample, unreadable = self._filling(), -1
        elif not self._skip_unreadable:
            return self._resized(image_id)
        else:
            try:
                sample, unreadable = self._resized(image_id), -1
            except UnreadableImage:
                sample, unreadable = self._filling(), image_id
        return sample | {"unreadable": np.int32(unreadable)} if self._skip_unreadable else sample

    def _resized(self, image_id: int) -> SampleArrays:
        index, settings = self._index, self._settings
        width, height = index.sizes[image_id].tolist()
        pixel_map = map_image((width, height), settings)
        image = draw_image(index.image_paths[image_id], (width, height), pixel_map, settings)
        boxes, labels = map_boxes(*index.objects(image_id), pixel_map)
        sample = pad_sample(image, boxes, labels, image_id, self._max_objects)
        return sample | _inverse(pixel_map.scale, pixel_map.offset)

    def _filling(self) -> SampleArrays:
        image = np.full((*self._settings.image_size, 3), self._settings.fill, np.uint8)
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
        return pad_sample(image, boxes, labels, -1, self._max_objects) | _inverse(
            np.ones(2), np.zeros(2)
        )


def _inverse(scale: np.ndarray, offset: np.ndarray) -> SampleArrays:
    return {"scale": scale.astype(np.float32), "offset": offset.astype(np.float32)}
