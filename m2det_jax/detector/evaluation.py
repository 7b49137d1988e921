"""Evaluating a detector on a data set: its step, the loop over batches, and the sums.

By one view of each image, or by several.
"""

import dataclasses
import logging
from collections.abc import Callable

import jax
import numpy as np
import tqdm

from m2det_jax.data import DetectionIndex, eval_batches
from m2det_jax.data.changes import shown
from m2det_jax.detector.detector import Detector
from m2det_jax.detector.objective import StepSettings, eval_losses
from m2det_jax.detector.views import MultiScale
from m2det_jax.errors import InputError
from m2det_jax.metrics.detections import ImageDetections, to_original
from m2det_jax.metrics.scores import coco_metrics
from m2det_jax.run import devices, readers

log = logging.getLogger("m2det_jax")

ON_DEVICE = ("image", "boxes", "labels", "mask", "image_id")  # of a batch, what the step takes
_PLACING = ("image_id", "scale", "offset")


def make_eval_step(detector: Detector, settings: StepSettings) -> Callable:
    """Returns eval_step(variables, batch) -> (Detections [B, K] in network pixels, loss terms).

    batch is that of `data.eval_batches`; the images that only fill the last batch (image_id -1)
    count nowhere.
    """

    def eval_step(variables, batch):
        outputs = detector.model.apply(variables, detector.normalize(batch["image"]), train=False)
        return detector.postprocess(outputs), eval_losses(detector, settings, outputs, batch)

    return eval_step


def evaluate(
    eval_step: Callable,
    variables: dict,
    index: DetectionIndex,
    detector: Detector,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    on_bad_image: str = "error",
    between: Callable[[], None] = lambda: None,
) -> tuple[dict, list[ImageDetections]]:
    """Runs a jitted eval step over a data set.

    Args:
      num_workers, num_threads: that read images; -1: what fits the host.
      on_bad_image: "error"; or "skip": images that cannot be read are named, and left out.
      between: called before each batch; may raise to end the evaluation.

    Returns:
      (metrics, detections): the metrics of `coco_metrics` with loss, loss_class and loss_box
      added, and one ImageDetections per image, in pixels of the original images.
    """
    chosen = readers.eval_readers(
        index.num_images, batch_size, [detector.resize.image_size], num_workers, num_threads
    )
    batches = eval_batches(
        index,
        resize=detector.resize,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=chosen.workers,
        num_threads=chosen.threads,
        on_bad_image=on_bad_image,
    )
    detections, losses = [], []
    total = -(-index.num_images // batch_size)
    with batches, tqdm.tqdm(total=total, desc="evaluate", leave=False, disable=None) as bar:
        for batch in batches:
            between()
            batch = devices.put_batch(batch, sharding)
            found, terms = eval_step(variables, {k: batch[k] for k in ON_DEVICE})
            found, placing = devices.fetch((found, {k: batch[k] for k in _PLACING}))
            detections += to_original(found, placing, index)
            losses.append(jax.device_get(terms))
            bar.update()
    return summarize(index, detections, losses)


def evaluate_views(
    multi: MultiScale,
    variables: dict,
    index: DetectionIndex,
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding,
    num_workers: int = readers.AUTOMATIC,
    num_threads: int = readers.AUTOMATIC,
    on_bad_image: str = "error",
) -> tuple[dict, list[ImageDetections]]:
    """As `evaluate`, by several views of each image; `multi` is made with settings of the loss."""
    found = multi.detect(
        variables,
        index,
        batch_size=batch_size,
        sharding=sharding,
        num_workers=num_workers,
        num_threads=num_threads,
        on_bad_image=on_bad_image,
    )
    detections, losses = [], []
    total = -(-index.num_images // batch_size)
    for images, terms in tqdm.tqdm(found, "evaluate", total, leave=False, disable=None):
        detections += images
        losses.append(jax.device_get(terms))
    return summarize(index, detections, losses)


def without_unreadable(
    index: DetectionIndex, detections: list[ImageDetections]
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Leaves images out of an index that could not be read, counts the rest anew, says which.

    Args:
      detections: one for each image that was read, in order.

    Raises:
      ValueError: no image could be read.
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
    moved = [dataclasses.replace(d, image_id=i) for i, d in enumerate(detections)]
    return index.subset(kept), moved


def summarize(
    index: DetectionIndex, detections: list[ImageDetections], losses: list[dict]
) -> tuple[dict, list[ImageDetections]]:
    """Returns (metrics, detections) of `evaluate` from the loss terms of its batches."""
    # Several processes have dealt the images among them; ties in score go by this order.
    detections.sort(key=lambda one: one.image_id)
    metrics = coco_metrics(*without_unreadable(index, detections))
    # Each batch's losses are per positive anchor; weigh them by the positives to get the set's.
    weights = np.maximum([terms["num_positives"] for terms in losses], 1.0)
    for name in ("loss", "loss_class", "loss_box"):
        metrics[name] = float(np.average([terms[name] for terms in losses], weights=weights))
    return metrics, detections
