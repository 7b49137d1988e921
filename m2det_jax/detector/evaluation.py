"""Evaluation of a detector on a data set: its step, the loop over batches, and the sums."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm

from m2det_jax import ops
from m2det_jax.data import DetectionIndex
from m2det_jax.data.changes import shown
from m2det_jax.detector.detector import Detector
from m2det_jax.detector.objective import LOSSES, StepSettings, eval_losses
from m2det_jax.detector.reading import Detected, Reading, open_batches
from m2det_jax.errors import InputError
from m2det_jax.metrics.detections import ImageDetections, part_of, to_original
from m2det_jax.metrics.scores import coco_metrics
from m2det_jax.run import devices

log = logging.getLogger("m2det_jax")

ON_DEVICE = ("image", "boxes", "labels", "mask", "image_id")  # of a batch, what the step takes
_PLACING = ("image_id", "scale", "offset")
_STAGES = {"load": "load", "network": "network", "nms": "NMS"}


def _network(detector: Detector, settings: StepSettings) -> Callable:
    """Returns network(variables, batch) -> (outputs of the model, loss terms)."""

    def network(variables: dict, batch: dict) -> tuple[Any, dict]:
        outputs: Any = detector.model.apply(
            variables, detector.normalize(batch["image"]), train=False
        )
        return outputs, eval_losses(detector, settings, outputs, batch)

    return network


def make_eval_step(detector: Detector, settings: StepSettings) -> Callable:
    """Returns eval_step(variables, batch) -> (Detections [B, K] in network pixels, loss terms).

    batch is that of `data.eval_batches`; the images that only fill the last batch (image_id -1)
    count nowhere.
    """
    network = _network(detector, settings)

    def eval_step(variables: dict, batch: dict) -> tuple[ops.Detections, dict]:
        outputs, terms = network(variables, batch)
        return detector.postprocess(outputs), terms

    return eval_step


def make_staged_step(
    detector: Detector, settings: StepSettings, mark: Callable[[str, Any], None]
) -> Callable:
    """Returns the eval_step of `make_eval_step` as two jitted programs: network, then suppression.

    Args:
        mark: called at the end of each stage, as `Stages.mark`.
    """
    network, suppress = jax.jit(_network(detector, settings)), jax.jit(detector.postprocess)

    def eval_step(variables: dict, batch: dict) -> tuple[ops.Detections, dict]:
        mark("load", batch)
        outputs, terms = network(variables, batch)
        mark("network", outputs)
        found = suppress(outputs)
        mark("nms", found)
        return found, terms

    return eval_step


class Stages:
    """Time of the stages of an evaluation, after the first batch, for which programs compile.

    load: everything but the next two, above all waiting for images. network: the network and the
    losses. nms: decoding, candidates and suppression.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(_STAGES, 0.0)
        self._batches, self._images, self._last = 0, 0, 0.0

    def of(self, num_images: int, batch_size: int) -> "Stages":
        """Tells how many images there are, and how many the first batch has; returns itself."""
        self._images = num_images - batch_size
        return self

    def mark(self, stage: str, value: Any) -> None:
        """Waits for the arrays of a stage; the time since the last mark is the stage's."""
        jax.block_until_ready(value)
        now = time.perf_counter()
        if self._batches:
            self._seconds[stage] += now - self._last
        self._batches += stage == "nms"
        self._last = now

    def speed(self) -> dict[str, float]:
        """Returns what is measured when the evaluation has ended; NaN if there was one batch.

        Returns:
            images: how many were timed. images_per_second. load_ms, network_ms, nms_ms: of an
            image.
        """
        timed, total = self._batches > 1, sum(self._seconds.values())
        return {
            "images": self._images if timed else 0,
            "images_per_second": self._images / total if timed else math.nan,
        } | {
            f"{name}_ms": 1e3 * spent / self._images if timed else math.nan
            for name, spent in self._seconds.items()
        }


def format_speed(speed: dict[str, float]) -> str:
    """Returns a line of text for the result of `Stages.speed`."""
    if not speed["images"]:
        return "speed: not measured, there is one batch only (the first one compiles)"
    parts = (f"{name} {speed[f'{key}_ms']:.1f}" for key, name in _STAGES.items())
    return (
        f"speed: {speed['images_per_second']:.1f} images/s; ms an image: {', '.join(parts)} "
        f"({speed['images']} images after the first batch)"
    )


def detect(
    eval_step: Callable,
    variables: dict,
    index: DetectionIndex,
    detector: Detector,
    reading: Reading,
    *,
    sharding: jax.sharding.Sharding,
    between: Callable[[], None] = lambda: None,
) -> Detected:
    """Yields for every batch its images' detections, in original pixels, and its loss terms.

    Args:
        eval_step: that of `make_eval_step`, jitted, or of `make_staged_step`.
        sharding: of a batch.
        between: called before each batch; may raise to end the evaluation.
    """
    with open_batches(index, [detector.resize], reading) as batches:
        for (batch,) in batches:
            between()
            batch = devices.put_batch(batch, sharding)
            found, terms = eval_step(variables, {k: batch[k] for k in ON_DEVICE})
            found, placing = devices.fetch((found, {k: batch[k] for k in _PLACING}))
            yield to_original(found, placing, index), terms


def evaluate(
    found: Detected, index: DetectionIndex, num_batches: int
) -> tuple[dict, list[ImageDetections]]:
    """Evaluates what is detected in a data set.

    Args:
        found: that of `detect`, or of `views.MultiScale.detect` with settings of the loss; is
            closed at the end.
        num_batches: that it yields, for the progress bar.

    Returns:
        (metrics, detections): the metrics of `coco_metrics` and the losses of
        `objective.losses_of`, and one ImageDetections per image.

    Raises:
        InputError: no image could be read.
    """
    detections, losses = [], []
    with contextlib.closing(found):
        bar = tqdm.tqdm(found, "evaluate", num_batches, leave=False, disable=None)
        for images, terms in bar:
            detections += images
            losses.append(jax.device_get(terms))
    # Several processes have dealt the images among them; ties in score go by this order.
    detections.sort(key=lambda one: one.image_id)
    metrics = coco_metrics(*without_unreadable(index, detections))
    # Each batch's losses are per positive anchor; weigh them by the positives to get the set's.
    weights = np.maximum([terms["num_positives"] for terms in losses], 1.0)
    for name in LOSSES:
        if name != "num_positives":
            metrics[name] = float(np.average([terms[name] for terms in losses], weights=weights))
    return metrics, detections


def without_unreadable(
    index: DetectionIndex, detections: list[ImageDetections]
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Leaves images out of an index that could not be read, counts the rest anew, says which.

    Args:
        detections: one for each image that was read, in order.

    Raises:
        InputError: no image could be read.
    """
    kept = [found.image_id for found in detections]
    if len(kept) == index.num_images:
        return index, detections
    if not kept:
        raise InputError(f"none of the {index.num_images} images to evaluate on can be read")
    unreadable = sorted(set(range(index.num_images)) - set(kept))
    names = shown([index.image_paths[i] for i in unreadable])
    log.warning("%d of %d images cannot be read and are left out of the evaluation: %s",
                len(unreadable), index.num_images, names)  # fmt: skip
    return only_read(index, detections)


def only_read(
    index: DetectionIndex, detections: list[ImageDetections]
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Returns the index of the images that have an entry, and the entries counted anew."""
    return part_of(index, detections, [found.image_id for found in detections])
