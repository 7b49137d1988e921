"""Batches of training images; what evaluation's batches share with them.

A training batch is a function of (index, settings, seed, step) alone: samples are drawn by their
global number before they are dealt to processes, so the number of processes, workers and threads
changes nothing but speed, and a run resumes at any step by asking for it.

B images of one process, M objects (padded), H, W. Boxes are xyxy pixels of the network input; sizes
are (height, width).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import grain
import numpy as np

from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.augment.steps import augment
from m2det_jax.data.feeding.sampling import EpochOrder, image_factors, size_of_step
from m2det_jax.data.feeding.workers import read_ahead, signals_held_back, worker_died
from m2det_jax.data.images import UnreadableImage
from m2det_jax.data.index import DetectionIndex

Batch = dict[str, np.ndarray]
SampleArrays = dict[str, np.ndarray | np.generic]  # of one sample: a batch without its first axis

_OBJECTS_MULTIPLE = 8
_RETRIES = 50  # of drawing the images that join in, where some cannot be read


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Settings of training batches.

    Attributes:
        augment: what is done to each image.
        batch_size: images of a step over all processes; each process gets its share.
        seed: 0..2**32 - 1; decides order and augmentation.
        sizes: (height, width) of the pictures, one drawn for each step; (): augment.image_size.
        repeat_threshold: images with classes in a smaller share of the images are seen more often
            in an epoch, see `sampling`; 0: every image once.
        max_objects: M; None: `padded_objects(index, augment)`.
        on_bad_image: "error": an image that cannot be read ends the iteration. "skip": the next
            one of the index stands in its place (the first follows the last), until one can be
            read, and images that steps join in are drawn anew; a batch is then a function of the
            readable files as well.
    """

    augment: AugmentSettings
    batch_size: int
    seed: int
    sizes: tuple[tuple[int, int], ...] = ()
    repeat_threshold: float = 0.0
    max_objects: int | None = None
    on_bad_image: str = "error"


def padded_objects(index: DetectionIndex, settings: AugmentSettings | None = None) -> int:
    """Returns M: the most objects of a picture, rounded up to a multiple of 8, at least 8.

    Args:
        settings: of training pictures, which may show several images; None: one image a picture.
    """
    most = settings.most_objects(index.max_objects) if settings else index.max_objects
    return max(-(-most // _OBJECTS_MULTIPLE), 1) * _OBJECTS_MULTIPLE


class Batches(Iterator[Batch]):
    """An iterator of batches that owns threads or processes: close it, or use it in a `with`.

    Args:
        images_of: returns the paths of the images of a batch, counted from the first that the
            iterator gives; for messages.
    """

    def __init__(
        self,
        iterator: grain.DatasetIterator,
        images_of: Callable[[int], list[str]] = lambda batch: [],
    ) -> None:
        self._iterator: grain.DatasetIterator | None = iterator
        self._error: Exception | None = None
        self._images_of, self._given = images_of, 0

    def __next__(self) -> Batch:
        if self._error is not None:
            raise self._error
        if self._iterator is None:
            raise StopIteration
        try:
            with contextlib.nullcontext() if self._given else signals_held_back():
                batch = next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except Exception as error:
            # grain would silently go on with the batch after the broken one.
            self._error = worker_died(error, self._images_of(self._given)) or error
            self.close()
            raise self._error from (None if self._error is error else error)
        self._given += 1
        return batch

    def close(self) -> None:
        """Ends the threads and processes; the iterator is over then."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def train_batches(
    index: DetectionIndex,
    settings: TrainSettings,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
) -> Batches:
    """Yields augmented batches without end, shuffled anew every epoch.

    An epoch's last batch is filled from the next epoch, so a data set may be smaller than a batch.

    Args:
        start_step: the first batch is that of this step, counted from 0.
        num_workers: worker processes; 0: threads of this process. They are spawned, without the
            main module: a script needs no `__main__` guard.
        num_threads: reading threads, in every worker if there are any; 0: read when asked.

    Returns:
        An iterator to be closed, of dicts: image uint8 [B, H, W, 3] RGB; boxes float32 [B, M, 4];
        labels int32 [B, M]; mask bool [B, M], false for padding, where boxes and labels are 0;
        image_id int32 [B], position in the index (of the first image, where several are shown);
        with "skip" also replaced int32 [B], an image that could not be read for this one, or -1.

    Raises:
        ValueError: if an argument is out of range; from next(): if an image cannot be read.
        ChildProcessError: from next(): if a worker process died.
    """
    share = check_share(index, settings.batch_size, process_index, process_count)
    _check_range("seed", settings.seed, 0, 2**32 - 1)
    _check_range("start_step", start_step, 0, None)
    check_reading(num_workers, num_threads)
    sample = Augment(index, settings)
    elements = _elements(index, settings)
    mine = elements[process_index::process_count]
    replace = settings.on_bad_image != "error"
    samples = elements.random_map(Replace(sample, index) if replace else sample)
    batches = samples[process_index::process_count].batch(share, drop_remainder=True)

    def images_of(batch: int) -> list[str]:
        first = (start_step + batch) * share
        numbers = (mine[i] % index.num_images for i in range(first, first + share))
        return [index.image_paths[number] for number in numbers]

    return Batches(read_ahead(batches[start_step:], num_workers, num_threads), images_of)


def _elements(index: DetectionIndex, settings: TrainSettings) -> grain.MapDataset:
    """Returns the endless order of samples; an element is image + number of the size * N.

    The seeds of grain's steps depend on how many there are: without sizes there must be none of
    them here, and an element is then the number of the image.
    """
    seed = settings.seed
    if settings.repeat_threshold > 0:
        order = EpochOrder(image_factors(index, settings.repeat_threshold), seed)
        elements = grain.MapDataset.range(1).seed(seed).repeat().map_with_index(Visit(order))
    else:
        elements = grain.MapDataset.range(index.num_images).seed(seed).shuffle().repeat()
    if len(settings.sizes) > 1:
        elements = elements.map_with_index(AddSize(settings, index.num_images))
    return elements


class Visit(grain.transforms.MapWithIndex):
    """The image of a visit, by the number of the visit."""

    def __init__(self, order: EpochOrder) -> None:
        self._order = order

    def map_with_index(self, index: int, element: int) -> int:
        """Returns the number of an image; the element that it gets means nothing."""
        return self._order[index]


class AddSize(grain.transforms.MapWithIndex):
    """Number of an image -> element, with the size that its step has."""

    def __init__(self, settings: TrainSettings, num_images: int) -> None:
        self._settings, self._num_images = settings, num_images

    def map_with_index(self, index: int, element: int) -> int:
        """Returns element + number of the size * N."""
        settings = self._settings
        step = index // settings.batch_size
        return element + size_of_step(settings.sizes, settings.seed, step) * self._num_images


class Augment(grain.transforms.RandomMap):
    """Element -> training sample, padded to M objects."""

    def __init__(self, index: DetectionIndex, settings: TrainSettings) -> None:
        self._index = index
        self._max_objects = check_max_objects(index, settings.augment, settings.max_objects)
        sizes = settings.sizes or (settings.augment.image_size,)
        self._settings = [dataclasses.replace(settings.augment, image_size=s) for s in sizes]

    def random_map(self, element: int, rng: np.random.Generator) -> SampleArrays:
        """Returns the arrays of one sample."""
        size, image_id = divmod(element, self._index.num_images)
        image, boxes, rows = augment(self._index, image_id, self._settings[size], rng)
        return pad_sample(image, boxes, self._index.labels[rows], image_id, self._max_objects)


class Replace(grain.transforms.RandomMap):
    """As Augment, with the next readable image of the index in place of one that is not."""

    def __init__(self, augment: Augment, index: DetectionIndex) -> None:
        self._augment, self._index = augment, index

    def random_map(self, element: int, rng: np.random.Generator) -> SampleArrays:
        """Returns the arrays of one sample, and the image that it replaces, or -1."""
        paths, number = self._index.image_paths, self._index.num_images
        size, image_id = divmod(element, number)
        errors: list[UnreadableImage] = []
        for _ in range(number + _RETRIES):
            try:
                sample = self._augment.random_map(image_id + size * number, rng)
            except UnreadableImage as error:
                errors.append(error)
                # An image that mosaic, mixup or paste joined in is drawn anew.
                if error.path == paths[image_id]:
                    image_id = (image_id + 1) % number
                continue
            bad = paths.index(errors[0].path) if errors else -1
            return sample | {"replaced": np.int32(bad)}
        raise errors[0]


def pad_sample(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, image_id: int, max_objects: int
) -> SampleArrays:
    """Returns a picture with its boxes [n, 4] and labels [n], padded to M objects, as arrays."""
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


def check_max_objects(
    index: DetectionIndex, settings: AugmentSettings | None, max_objects: int | None
) -> int:
    """Returns M, padded_objects where none is given.

    Raises:
        ValueError: if a picture may have more objects.
    """
    if max_objects is None:
        return padded_objects(index, settings)
    most = settings.most_objects(index.max_objects) if settings else index.max_objects
    if max_objects < most:
        what = "a picture can have" if most > index.max_objects else "an image has"
        raise ValueError(
            f"max_objects: {what} {most} objects, got {max_objects}; no object is ever dropped, so "
            "give at least that"
        )
    return max_objects


def check_reading(num_workers: int, num_threads: int) -> None:
    """Raises ValueError for a negative number."""
    _check_range("num_workers", num_workers, 0, None)
    _check_range("num_threads", num_threads, 0, None)


def check_share(
    index: DetectionIndex, batch_size: int, process_index: int, process_count: int
) -> int:
    """Returns the number of images that this process contributes to a batch.

    Raises:
        ValueError: if a number is out of range, or there are no images.
    """
    if not index.num_images:
        raise ValueError("the data set has no images")
    _check_range("batch_size", batch_size, 1, None)
    _check_range("process_count", process_count, 1, None)
    _check_range("process_index", process_index, 0, process_count - 1)
    if batch_size % process_count:
        raise ValueError(
            f"batch_size: {batch_size} images cannot be dealt evenly to {process_count} processes"
        )
    return batch_size // process_count


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        limits = f"{low}..{high}" if high is not None else f"at least {low}"
        raise ValueError(f"{name}: expected {limits}, got {value}")
