"""A trained detector for use from Python: images in, boxes in their pixels out."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np

from m2det_jax import runtime
from m2det_jax.config import Config
from m2det_jax.datasets.evaluation import read_data
from m2det_jax.errors import InputError
from m2det_jax.inference.evaluation import data_choice, evaluate_restored
from m2det_jax.inference.pictures import ImageLike, Picture, View, look_at, one_by_one
from m2det_jax.inference.programs import Programs
from m2det_jax.inference.result import Result
from m2det_jax.inference.slices import detect_sliced, tile_size
from m2det_jax.inference.stream import ahead, in_batches, until_error
from m2det_jax.metrics.detections import one_behind
from m2det_jax.run import memory, readers
from m2det_jax.trained import Restored, restore

THRESHOLD = 0.5  # lowest score, as that of the predict verb

_Seen = tuple[Picture, list[View]]  # an image, at every input size


def load(
    workdir: str | os.PathLike,
    checkpoint: str | int = "latest",
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> "TrainedDetector":
    """Loads a trained detector from its workdir alone, ready for use.

    Programs are kept in jax's compilation cache, ~/.cache/m2det_jax unless jax has been told
    another place, so that a later process compiles nothing.

    Args:
        workdir: what training was given as workdir, or a folder that `m2det_jax.convert` wrote of
            a whole detector.
        checkpoint: "latest", "best" (by validation AP), or a step.
        overrides: changes of config.eval, such as {"eval.nms": "soft_linear"} or
            ["eval.nms=soft_linear"].

    Raises:
        InputError: if there is no such checkpoint, it is damaged, or an override does not fit.
    """
    runtime.set_up_jax()
    runtime.leave_out_cache_on_several_cpus()
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={value}" for key, value in overrides.items()]
    workdir = pathlib.Path(workdir)
    with runtime.expected_warnings_left_out():
        return TrainedDetector(restore(workdir, checkpoint, overrides), workdir)


class TrainedDetector:
    """A trained detector; `load` and `fit` give one.

    Threads may use it together.

    Attributes:
        restored: model, variables, config and class names, for all that is not offered here.
        workdir: where it is from.
    """

    def __init__(self, restored: Restored, workdir: pathlib.Path) -> None:
        self.restored, self.workdir = restored, workdir

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id."""
        return self.restored.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network input, pixels; images of any size are brought to it."""
        return self.restored.detector.resize.image_size

    @property
    def step(self) -> int:
        """Optimiser step of the checkpoint."""
        return self.restored.step

    @property
    def config(self) -> Config:
        """What it was trained with, and config.eval as it is used."""
        return self.restored.config

    def __repr__(self) -> str:
        height, width = self.image_size
        names = ", ".join(self.class_names[:5]) + ", ..." * (len(self.class_names) > 5)
        return (
            f"TrainedDetector({self.workdir}, step {self.step}, input {height} x {width}, "
            f"{len(self.class_names)} classes: {names})"
        )

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
            seen = look_at(images, self._programs.resizes)
            return self._detect([seen], threshold, batch_size or 1)()[0]
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
        suppression = self.restored.detector.suppression
        if not len(inputs):
            count = suppression.max_detections
            empty = np.zeros((0, count, 4), np.float32), np.zeros((0, count), np.float32)
            return *empty, np.zeros((0, count), np.int32)
        with memory.batch_explained("prediction", "a batch", len(inputs)):
            found = self._programs.detect_images(inputs, suppression.score_threshold)
            found = jax.device_get(found)
        boxes = np.where(found.valid[..., None], found.boxes, np.float32(-1))
        scores = np.where(found.valid, found.scores, np.float32(-1))
        return boxes, scores, np.where(found.valid, found.labels, np.int32(-1))

    def evaluate(
        self,
        data: str | os.PathLike | Mapping[str, Any] | None = None,
        *,
        batch_size: int = 0,
        num_workers: int = readers.AUTOMATIC,
        num_threads: int = readers.AUTOMATIC,
        trust: bool = False,
    ) -> dict[str, Any]:
        """Evaluates the detector on annotated images, as `python -m m2det_jax.evaluate` does.

        Args:
            data: a CSV file of annotations; a folder with val.csv; or a mapping with the flags of
                the verb, such as {"format": "coco", "root": "coco", "split": "val2017"}, or
                {"csv": "test.csv", "classes": "classes.csv"}. None: the run's validation set.
            batch_size: images per call, over all devices; 0: that of the config.
            num_workers: processes that read images; -1: what fits the host.
            num_threads: threads of each that read images; -1: likewise.
            trust: a Python module that the run names as config.data.format may be imported.

        Returns:
            The metrics: AP, AP50 and the others of COCO, VOC AP50, the losses, and per_class.

        Raises:
            DataError: if the data have errors for which training is refused.
            InputError: if there are no annotations, or the classes do not fit; says what to do.
        """
        choice = data_choice(data)
        index, _ = read_data(choice, self.restored, self.workdir, trust=trust)
        reading = {"num_workers": num_workers, "num_threads": num_threads}
        return evaluate_restored(self.restored, index, batch_size, "batch_size", **reading)[0]

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs(self.restored)

    @functools.cached_property
    def _threads(self) -> int:
        """Threads that decode images."""
        return readers.local_readers("prediction", batch_bytes=0, images=0).threads

    def _stream(
        self, images: Iterable[ImageLike], threshold: float, batch_size: int
    ) -> Iterator[Result]:
        """Yields the results of images: decoding is ahead of the device, fetching one behind."""

        def look(numbered: tuple[int, ImageLike]) -> _Seen:
            number, image = numbered
            return look_at(image, self._programs.resizes, f"images[{number}]")

        errors: list[Exception] = []
        most = batch_size + self._threads
        seen = ahead(look, enumerate(images), threads=self._threads, most=most)
        with contextlib.closing(seen):
            batches = in_batches(until_error(seen, errors), batch_size)
            dispatched = (self._detect(batch, threshold, batch_size) for batch in batches)
            for fetch in one_behind(dispatched):
                yield from fetch()
        if errors:
            raise errors[0]

    def _sliced(
        self,
        images: Iterable[ImageLike],
        threshold: float,
        batch_size: int,
        tile: tuple[int, int],
    ) -> Iterator[Result]:
        """Yields the results of images that are seen in tiles, too."""
        found_in = detect_sliced(
            self._programs,
            images,
            tile=tile,
            threshold=threshold,
            batch_size=batch_size,
            threads=self._threads,
        )
        for found in found_in:
            yield Result(
                boxes=found.boxes,
                scores=found.scores,
                labels=found.labels,
                class_names=self.class_names,
                picture=found.picture,
                class_ids=self.restored.class_ids,
            )

    def _detect(
        self, seen: Sequence[_Seen], threshold: float, batch_size: int
    ) -> Callable[[], list[Result]]:
        """Starts the device on a batch; returns what waits for it and gives the results."""
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

    def _result(self, found: Any, i: int, picture: Picture, views: Sequence[View]) -> Result:
        valid = found.valid[i]
        return Result(
            boxes=self._programs.to_picture(found.boxes[i][valid], views, picture.size),
            scores=found.scores[i][valid],
            labels=found.labels[i][valid],
            class_names=self.class_names,
            picture=picture,
            class_ids=self.restored.class_ids,
        )


def _check(threshold: float, batch_size: int | None) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.floating):
        raise InputError(f"threshold: a score from 0 to 1 expected, got {threshold!r}")
    if not 0 <= threshold <= 1:  # NaN is not, either
        raise InputError(f"threshold: a score from 0 to 1 expected, got {threshold:g}")
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"batch_size: 1 or more expected, got {batch_size}")
