"""Detection in pictures of any kind by any detector: a trained one, or an exported one."""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np

from m2det_jax.data import ResizeSettings
from m2det_jax.errors import InputError
from m2det_jax.inference.pictures import ImageLike, Picture, View, look_at, one_by_one
from m2det_jax.inference.programs import PicturePrograms
from m2det_jax.inference.result import Result
from m2det_jax.inference.slices import tile_size
from m2det_jax.inference.stream import ahead, in_batches, until_error
from m2det_jax.metrics.detections import one_behind
from m2det_jax.run import memory, readers

THRESHOLD = 0.5  # lowest score, as that of the predict verb

Seen = tuple[Picture, list[View]]  # an image at all input sizes, as `look_at` gives it


class PictureDetector(abc.ABC):
    """What trained and exported detectors have in common: images in, boxes in their pixels out.

    Threads may use it together.
    """

    @property
    @abc.abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id."""

    @property
    @abc.abstractmethod
    def class_ids(self) -> tuple[int | str, ...]:
        """Category id of each class id in the data set of the training; (): it has none."""

    @property
    @abc.abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network input, pixels; images of any size are brought to it."""

    @property
    @abc.abstractmethod
    def step(self) -> int:
        """Optimiser step of the checkpoint."""

    @property
    def resizes(self) -> tuple[ResizeSettings, ...]:
        """Input sizes at which every image is seen, and how it is brought to them."""
        return self._programs.resizes

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a sequence of texts, too
        self,
        images: ImageLike,
        threshold: float = ...,
        batch_size: int | None = ...,
        slices: int | str | None = ...,
    ) -> Result: ...

    @overload
    def predict(  # type: ignore[overload-overlap]  # a sequence is an iterable, too
        self,
        images: Sequence[ImageLike],
        threshold: float = ...,
        batch_size: int | None = ...,
        slices: int | str | None = ...,
    ) -> list[Result]: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageLike],
        threshold: float = ...,
        batch_size: int | None = ...,
        slices: int | str | None = ...,
    ) -> Iterator[Result]: ...

    def predict(
        self,
        images: Any,
        threshold: float = THRESHOLD,
        batch_size: int | None = None,
        slices: int | str | None = None,
    ) -> Result | list[Result] | Iterator[Result]:
        """Detects objects in an image, or in any number of them, of any sizes.

        An image is a path (str or PathLike), an http or https URL, a PIL image, or a uint8 array:
        [H, W, 3] RGB (not OpenCV's BGR), [H, W] or [H, W, 1] grey, [H, W, 4] RGBA, which is laid
        over white. EXIF orientation is respected: boxes are in pixels of the upright picture.

        Images are decoded ahead in threads, while the device computes. A batch size is compiled
        once, the last batch is filled. An array must not be changed before its result is there.

        Args:
            images: one; a list, tuple or array [B, H, W, 3] of them; or an iterator, such as a
                generator, of which a few more than a batch are taken ahead.
            threshold: lowest score, 0..1; in place of config.eval.score_threshold.
            batch_size: images per call, over all devices; None: one, or one a device for several
                images. On a GPU more are faster.
            slices: see large pictures in overlapping tiles, too, for small objects: pixels of a
                tile's longer side, or "auto", the size of the network input; None: do not.

        Returns:
            A Result; for several images a list; for an iterator an iterator of Results, which
            come as the images are given.

        Raises:
            InputError: if what is given is no image or cannot be read (the results before it come
                first), or a number does not fit.
            OutOfMemory: if a batch does not fit into the memory of a device.
        """
        _check(threshold, batch_size)
        several = one_by_one(images)
        if slices is not None:
            tile = tile_size(slices, self.image_size)
            batch_size = batch_size or jax.local_device_count()
            if several is None:
                return list(self._sliced([images], threshold, batch_size, tile))[0]
            found = self._sliced(several, threshold, batch_size, tile)
            return found if isinstance(several, Iterator) else list(found)
        if several is None:
            seen = look_at(images, self.resizes)
            return self.start_batch([seen], threshold, batch_size or 1)()[0]
        results = self._stream(several, threshold, batch_size or jax.local_device_count())
        return results if isinstance(several, Iterator) else list(results)

    def predict_on_batch(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Detects objects in images that have the size of the network input already.

        As in keras-retinanet, but that images are uint8 RGB: nothing is to be subtracted. Each
        batch size is compiled once. Of config.eval the views are left out.

        Args:
            inputs: uint8 [B, H, W, 3] RGB, (H, W) = `image_size`.

        Returns:
            boxes float32 [B, K, 4] xyxy in pixels of the inputs, scores float32 [B, K] and labels
            int32 [B, K], the surest first. K is config.eval.max_detections, scores are above
            config.eval.score_threshold, and -1 fills what is left.

        Raises:
            InputError: if the inputs are of another type or size.
        """
        inputs, (height, width) = np.asarray(inputs), self.image_size
        if inputs.dtype != np.uint8 or inputs.shape[:1] + (height, width, 3) != inputs.shape:
            got = " x ".join(map(str, inputs.shape))
            raise InputError(
                f"inputs: expected uint8 [B, {height}, {width}, 3], got {inputs.dtype} {got}; "
                "`predict` takes images of all sizes"
            )
        if not len(inputs):
            count = self._programs.max_detections
            empty = np.zeros((0, count, 4), np.float32), np.zeros((0, count), np.float32)
            return *empty, np.zeros((0, count), np.int32)
        with memory.batch_explained("prediction", "a batch", len(inputs)):
            found = self._programs.detect_images(inputs, self._programs.score_threshold)
            found = jax.device_get(found)
        boxes = np.where(found.valid[..., None], found.boxes, np.float32(-1))
        scores = np.where(found.valid, found.scores, np.float32(-1))
        return boxes, scores, np.where(found.valid, found.labels, np.int32(-1))

    def start_batch(
        self, seen: Sequence[Seen], threshold: float, batch_size: int
    ) -> Callable[[], list[Result]]:
        """Starts the device on up to `batch_size` images that `look_at` has decoded.

        For programs that decode images themselves; all others use `predict`.

        Args:
            seen: the images, at the input sizes of `resizes`.
            threshold: lowest score, 0..1.
            batch_size: images of the compiled function; what is missing is filled.

        Returns:
            A function that waits for the device and returns a Result for each image.

        Raises:
            OutOfMemory: here or in the function, if the batch does not fit into a device.
        """
        explained = functools.partial(
            memory.batch_explained, "prediction", "batch_size", batch_size
        )
        with explained():
            views = [views for _, views in seen]
            dispatched = self._programs.detect_views(views, threshold, batch_size)

        def fetch() -> list[Result]:
            with explained():
                found = jax.device_get(dispatched)
            return [self._result(found, i, *one) for i, one in enumerate(seen)]

        return fetch

    @property
    @abc.abstractmethod
    def _programs(self) -> PicturePrograms:
        """What turns views of pictures into detections."""

    @abc.abstractmethod
    def _sliced(
        self,
        images: Iterable[ImageLike],
        threshold: float,
        batch_size: int,
        tile: tuple[int, int],
    ) -> Iterator[Result]:
        """Yields the results of images that are seen in tiles, too."""

    @functools.cached_property
    def _threads(self) -> int:
        """Threads that decode images."""
        return readers.local_readers("prediction", batch_bytes=0, images=0).threads

    def _stream(
        self, images: Iterable[ImageLike], threshold: float, batch_size: int
    ) -> Iterator[Result]:
        """Yields the results of images: decoding is ahead of the device, fetching one behind."""

        def look(numbered: tuple[int, ImageLike]) -> Seen:
            number, image = numbered
            return look_at(image, self.resizes, f"images[{number}]")

        errors: list[Exception] = []
        most = batch_size + self._threads
        seen = ahead(look, enumerate(images), threads=self._threads, most=most)
        with contextlib.closing(seen):
            batches = in_batches(until_error(seen, errors), batch_size)
            dispatched = (self.start_batch(batch, threshold, batch_size) for batch in batches)
            for fetch in one_behind(dispatched):
                yield from fetch()
        if errors:
            raise errors[0]

    def _result(self, found: Any, i: int, picture: Picture, views: Sequence[View]) -> Result:
        valid = found.valid[i]
        return Result(
            boxes=self._programs.to_picture(found.boxes[i][valid], views, picture.size),
            scores=found.scores[i][valid],
            labels=found.labels[i][valid],
            class_names=self.class_names,
            picture=picture,
            class_ids=self.class_ids,
        )


def _check(threshold: float, batch_size: int | None) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.floating):
        raise InputError(f"threshold: a score from 0 to 1 expected, got {threshold!r}")
    if not 0 <= threshold <= 1:  # NaN is not, either
        raise InputError(f"threshold: a score from 0 to 1 expected, got {threshold:g}")
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"batch_size: 1 or more expected, got {batch_size}")
