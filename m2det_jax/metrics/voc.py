"""PASCAL VOC's average precision: the area under the curve at one IoU."""

import math
from collections.abc import Sequence

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections, check_detections


def _pairwise_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU [n, m] of boxes [n, 4] and [m, 4]; 0 where both are empty."""
    low = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    high = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=-1) for b in (boxes_a, boxes_b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return common / np.where(union > 0, union, 1)


def _claims(index: DetectionIndex, found: ImageDetections, iou_threshold: float) -> np.ndarray:
    """What each detection points at, int64 [n]: an object (position in index.boxes), -1 nothing,
    -2 something to be ignored: a difficult object, or no object but a region."""
    if len(found.scores) == 0:
        return np.zeros(0, np.int64)
    boxes, labels = np.asarray(found.boxes, np.float64), np.asarray(found.labels)[:, None]
    rows = np.arange(index.offsets[found.image_id], index.offsets[found.image_id + 1])
    # One more object, that nothing overlaps, so that an image without any needs no case of its own.
    iou = np.full((len(boxes), len(rows) + 1), -1.0)
    iou[:, :-1] = _pairwise_iou(boxes, np.float64(index.boxes[rows]))
    iou[:, :-1][labels != index.labels[rows]] = -1.0
    claims = np.where(iou.max(1) >= iou_threshold, np.append(rows, -1)[iou.argmax(1)], -1)
    claims[np.append(index.difficult, False)[claims]] = -2
    regions, region_labels = index.regions_of(found.image_id)
    covered = _share_inside(boxes, np.float64(regions)) >= iou_threshold
    covered &= (region_labels < 0) | (labels == region_labels)
    return np.where((claims == -1) & covered.any(1), -2, claims)


def _share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Share of each box [n, 4] that lies in each region [m, 4]: [n, m]."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=-1)[:, None]
    return np.prod(np.maximum(high - low, 0), axis=-1) / np.where(areas > 0, areas, 1)


def average_precision(hits: np.ndarray, num_objects: int) -> float:
    """Area under the precision-recall curve, all points (PASCAL VOC since 2010).

    hits: bool [n], whether each detection, best score first, found an object of its own;
    num_objects: objects to find. Precision is made non-increasing from the right. NaN if there
    are no objects.
    """
    if num_objects == 0:
        return math.nan
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.asarray(hits, bool)].sum() / num_objects)


def voc_average_precision(
    index: DetectionIndex, detections: Sequence[ImageDetections], *, iou_threshold: float = 0.5
) -> float:
    """Mean over the classes with objects of the VOC average precision; NaN without any object.

    A detection points at the object of its class it overlaps most; it is a hit if their IoU
    reaches the threshold and no better-scored detection points there. Difficult objects and what
    points at them do not count, nor do detections of no object that lie in a region by at least
    that share. Raises ValueError like coco_results.
    """
    check_detections(index, detections)
    # An empty first part, so that no detections at all need no case of their own.
    scores = np.concatenate([[], *(np.asarray(found.scores) for found in detections)])
    labels = np.concatenate([[], *(np.asarray(found.labels) for found in detections)])
    claims = np.concatenate([[], *(_claims(index, found, iou_threshold) for found in detections)])
    order = np.argsort(-scores, kind="stable")
    first = np.unique(claims[order], return_index=True)[1]
    hits = np.zeros(len(order), bool)
    hits[first] = True
    hits &= claims[order] >= 0
    counted = claims[order] > -2
    counts = np.bincount(index.labels[~index.difficult], minlength=len(index.class_names))
    values = [
        average_precision(hits[counted & (labels[order] == label)], int(counts[label]))
        for label in np.flatnonzero(counts)
    ]
    return float(np.mean(values)) if values else math.nan
