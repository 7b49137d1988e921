"""Batches for training and evaluation.

A training batch is a function of (index, settings, seed, step) alone: samples are drawn by their
global number before they are dealt to processes, so the number of processes, workers and threads
changes nothing but speed, and a run resumes at any step by asking for it.

B images of one process, M objects (padded), H, W. Boxes are xyxy pixels of the network input.
"""

import grain

from m2det_jax.data.augment.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.feeding.batches import Batches, iterate
from m2det_jax.data.feeding.elements import AtSize, Augment, Replace, Resize, Size, Visit
from m2det_jax.data.feeding.sampling import EpochOrder, image_factors
from m2det_jax.data.index import DetectionIndex

_OBJECTS_MULTIPLE = 8


def padded_objects(index: DetectionIndex, settings: AugmentSettings | None = None) -> int:
    """Returns M: no picture has more objects, rounded up to a multiple of 8, at least 8.

    settings: of training pictures, which may show several images; None: one image a picture.
    """
    most = settings.most_objects(index.max_objects) if settings else index.max_objects
    return max(-(-most // _OBJECTS_MULTIPLE), 1) * _OBJECTS_MULTIPLE


def train_batches(
    index: DetectionIndex,
    *,
    settings: AugmentSettings,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    max_objects: int | None = None,
    repeat_threshold: float = 0.0,
    sizes: tuple[Size, ...] = (),
    on_bad_image: str = "error",
) -> Batches:
    """Yields augmented batches without end, shuffled anew every epoch.

    An epoch's last batch is filled from the next epoch, so a data set may be smaller than a batch.

    Args:
        batch_size: images of a step over all processes; this process gets its share.
        seed: 0..2**32 - 1; decides order and augmentation.
        start_step: the first batch is that of this step, counted from 0.
        num_workers: worker processes; 0: threads of this process. They are spawned, without the
            main module: a script needs no `__main__` guard.
        num_threads: reading threads, in every worker if there are any; 0: read when asked.
        max_objects: M; None: `padded_objects(index, settings)`.
        repeat_threshold: images with classes in a smaller share of the images are seen more often
            in an epoch, see `sampling`; 0: every image once.
        sizes: (height, width) of the pictures, one drawn for each step; (): settings.image_size.
        on_bad_image: "error": an image that cannot be read ends the iteration. "skip": the next
            one of the index stands in its place (the first follows the last), until one can be
            read, and images that steps join in are drawn anew; a batch is then a function of the
            readable files as well.

    Returns:
        An iterator to be closed, of dicts: image uint8 [B, H, W, 3] RGB; boxes float32 [B, M, 4];
        labels int32 [B, M]; mask bool [B, M], false for padding, where boxes and labels are 0;
        image_id int32 [B], position in the index (of the first image, where several are shown);
        with "skip" also replaced int32 [B], an image that could not be read for this one, or -1.

    Raises:
        ValueError: an argument is out of range; from next(): an image cannot be read, by name.
        ChildProcessError: from next(): a worker process died.
    """
    max_objects = _check_max_objects(index, settings, max_objects)
    share = _check_share(index, batch_size, process_index, process_count)
    _check_range("seed", seed, 0, 2**32 - 1)
    _check_range("start_step", start_step, 0, None)
    _check_reading(num_workers, num_threads)
    if repeat_threshold > 0:
        order = EpochOrder(image_factors(index, repeat_threshold), seed)
        samples = grain.MapDataset.range(1).seed(seed).repeat().map_with_index(Visit(order))
    else:
        samples = grain.MapDataset.range(index.num_images).seed(seed).shuffle().repeat()
    if len(sizes) > 1:
        samples = samples.map_with_index(AtSize(sizes, seed, batch_size))
    mine = samples[process_index::process_count]
    sample = Augment(index, settings, sizes, max_objects)
    samples = samples.random_map(sample if on_bad_image == "error" else Replace(sample, index))
    batches = samples[process_index::process_count].batch(share, drop_remainder=True)

    def images_of(batch: int) -> list[str]:
        first = (start_step + batch) * share
        elements = (mine[i] for i in range(first, first + share))
        return [index.image_paths[e[0] if isinstance(e, tuple) else e] for e in elements]

    return iterate(batches[start_step:], num_workers, num_threads, images_of)


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
        on_bad_image: "error": an image that cannot be read ends the iteration. "skip": filling, as
            in the last batch, stands in its place.

    Returns:
        As `train_batches`, and scale, offset float32 [B, 2] (x, y), by which
        boxes_original = (boxes - offset) / scale. The last batch is filled with images of the fill
        colour that have image_id -1, no objects, scale 1 and offset 0. Every process gets the same
        number of batches. With "skip" also unreadable int32 [B], the image that could not be read
        and has filling in its place, or -1.

    Raises:
        ValueError: an argument is out of range; from next(): an image cannot be read, by name.
        ChildProcessError: from next(): a worker process died.
    """
    max_objects = _check_max_objects(index, None, max_objects)
    share = _check_share(index, batch_size, process_index, process_count)
    _check_reading(num_workers, num_threads)
    padded = -(-index.num_images // batch_size) * batch_size
    sample = Resize(index, resize, max_objects, skip_unreadable=on_bad_image == "skip")
    samples = grain.MapDataset.range(padded).map(sample)
    batches = samples[process_index::process_count].batch(share, drop_remainder=True)
    return iterate(batches, num_workers, num_threads)


def _check_max_objects(
    index: DetectionIndex, settings: AugmentSettings | None, max_objects: int | None
) -> int:
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


def _check_reading(num_workers: int, num_threads: int) -> None:
    _check_range("num_workers", num_workers, 0, None)
    _check_range("num_threads", num_threads, 0, None)


def _check_share(
    index: DetectionIndex, batch_size: int, process_index: int, process_count: int
) -> int:
    """Returns the images that this process contributes to a batch."""
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
