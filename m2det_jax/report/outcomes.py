"""Outcomes of detections and truths: correct, poor box, wrong class, duplicate, background, missed.

Detections of an image are judged with the best score first, as COCO does at IoU 0.5. So what is
said of a detection does not depend on those with lower scores: at a threshold, the outcomes are
those of the detections that are left. Letters: D detections, K truths (rows of the index).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.details import best_f1
from m2det_jax.metrics.detections import ImageDetections, check_detections
from m2det_jax.ops.coverage import aligned_iou

# Kinds of detections in the order of their numbers; the last does not count.
KINDS = ("correct", "poor box", "wrong class", "duplicate", "background", "ignored")
CORRECT, POOR, WRONG, DUPLICATE, BACKGROUND, IGNORED = range(len(KINDS))
GOOD_IOU, POOR_IOU = 0.5, 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of every detection and every truth.

    Attributes:
        images: int64 [D], image of each detection, rising.
        boxes: float64 [D, 4], xyxy pixels of the original image.
        scores: float64 [D].
        labels: int64 [D].
        kinds: int64 [D], positions in KINDS.
        truths: int64 [D], the truth that the detection meets or nearly meets; -1: none.
        ious: float64 [D], the IoU with that truth; 0 without one.
        found: float64 [K], the score of the correct detection of each truth; NaN: none finds it.
        counted: bool [K], False for difficult truths, which need not be found.
    """

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    truths: np.ndarray
    ious: np.ndarray
    found: np.ndarray
    counted: np.ndarray

    def missed(self, threshold: float = 0.0) -> np.ndarray:
        """Returns which truths no detection of that score or more finds: bool [K]."""
        return self.counted & ~(self.found >= threshold)


def outcomes(index: DetectionIndex, detections: Sequence[ImageDetections]) -> Outcomes:
    """Judges all detections.

    A detection is correct if it overlaps a free truth of its class with an IoU of 0.5 or more.
    Else it is, in this order: a duplicate, if it so overlaps a truth of its class that is taken; a
    wrong class, if it so overlaps a truth of another class; a poor box, if it overlaps a truth of
    its class with an IoU of 0.1 or more; background. One that meets a difficult truth of its class
    is ignored, and so is a poor box or background that lies by half or more in a region.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    check_detections(index, detections)
    found = np.full(len(index.labels), np.nan)
    parts = [_of_image(index, one, found) for one in sorted(detections, key=lambda d: d.image_id)]
    whole, real = np.zeros(0, np.int64), np.zeros(0)
    empty = (whole, np.zeros((0, 4)), real, whole, whole, whole, real)
    images, boxes, scores, labels, kinds, truths, ious = (
        np.concatenate(column) for column in zip(empty, *parts, strict=True)
    )
    counted = ~index.difficult
    return Outcomes(images, boxes, scores, labels, kinds, truths, ious, found, counted)


def _of_image(index: DetectionIndex, one: ImageDetections, found: np.ndarray) -> tuple:
    """Returns the columns of one image, best score first, and notes the truths that are found."""
    order = np.argsort(-np.asarray(one.scores, float), kind="stable")
    boxes = np.asarray(one.boxes, float).reshape(-1, 4)[order]
    scores = np.asarray(one.scores, float)[order]
    labels = np.asarray(one.labels, np.int64)[order]
    rows = np.arange(index.offsets[one.image_id], index.offsets[one.image_id + 1])
    overlap = aligned_iou(boxes[:, None], index.boxes[rows].astype(float)[None])
    same, difficult = labels[:, None] == index.labels[rows], index.difficult[rows]
    good = overlap >= GOOD_IOU
    kinds, at = np.full(len(order), BACKGROUND), np.full(len(order), -1)
    for kind, fits in (  # the last one that fits counts
        (POOR, (overlap >= POOR_IOU) & same & ~difficult),
        (WRONG, good & ~same & ~difficult),
        (IGNORED, good & same & difficult),
    ):
        hit = np.flatnonzero(fits.any(1))
        kinds[hit] = kind
        at[hit] = _largest(overlap[hit], fits[hit])
    # Whether a truth is free depends on the better detections.
    for i in np.flatnonzero((good & same & ~difficult).any(1)):
        free = good[i] & same[i] & ~difficult & np.isnan(found[rows])
        if free.any():
            kinds[i], at[i] = CORRECT, _largest(overlap[i], free)
            found[rows[at[i]]] = scores[i]
        elif kinds[i] != IGNORED:
            kinds[i], at[i] = DUPLICATE, _largest(overlap[i], good[i] & same[i])
    forgiven = _in_regions(index, one.image_id, boxes, labels)
    kinds[forgiven & ((kinds == BACKGROUND) | (kinds == POOR))] = IGNORED
    meets = at >= 0
    truths, ious = np.full(len(order), -1), np.zeros(len(order))
    truths[meets], ious[meets] = rows[at[meets]], overlap[meets, at[meets]]
    return np.full(len(order), one.image_id), boxes, scores, labels, kinds, truths, ious


def _largest(overlap: np.ndarray, fits: np.ndarray) -> np.ndarray:
    """Returns the position of the largest overlap among those that fit, along the last axis."""
    return np.where(fits, overlap, -1).argmax(-1) if overlap.size else np.zeros(0, np.int64)


def _in_regions(
    index: DetectionIndex, image: int, boxes: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Returns which boxes [n, 4] lie by half or more in a region of their class: bool [n]."""
    regions, classes = index.regions_of(image)
    if not len(regions):
        return np.zeros(len(boxes), bool)
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    area = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(-1)[:, None]
    inside = np.maximum(high - low, 0).prod(-1) >= GOOD_IOU * np.maximum(area, 1e-12)
    return (inside & ((classes < 0) | (labels[:, None] == classes))).any(1)


def kind_counts(judged: Outcomes, num_classes: int, threshold: float) -> np.ndarray:
    """Returns the detections of that score or more by class and kind: int64 [C, len(KINDS)]."""
    chosen = judged.scores >= threshold
    cells = judged.labels[chosen] * len(KINDS) + judged.kinds[chosen]
    return np.bincount(cells, minlength=num_classes * len(KINDS)).reshape(num_classes, -1)


def confusion(judged: Outcomes, index: DetectionIndex, threshold: float) -> np.ndarray:
    """Returns how often each class is taken for which: int64 [C + 1, C + 1].

    Rows are the true class, the last one background; columns the detected class, the last one
    missed. A truth counts once: as found, else by the best-scored detection of another class that
    meets it, else as missed. All other detections that count are in the row of the background.
    """
    size = len(index.class_names)
    matrix = np.zeros((size + 1, size + 1), np.int64)
    is_found = judged.found >= threshold
    np.add.at(matrix, (index.labels[is_found], index.labels[is_found]), 1)
    high = judged.scores >= threshold
    some = np.flatnonzero(high & (judged.kinds == WRONG))
    some = some[~is_found[judged.truths[some]]]
    some = some[np.argsort(-judged.scores[some], kind="stable")]
    rows, first = np.unique(judged.truths[some], return_index=True)
    np.add.at(matrix, (index.labels[rows], judged.labels[some[first]]), 1)
    missed = judged.missed(threshold)
    missed[rows] = False
    np.add.at(matrix, (index.labels[missed], size), 1)
    false = high & (judged.kinds != CORRECT) & (judged.kinds != IGNORED)
    false[some[first]] = False
    np.add.at(matrix, (size, judged.labels[false]), 1)
    return matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall by falling score, and the score with the best F1.

    Attributes:
        precision, recall: float64 [n]; empty without truths or detections.
        truths: how many there are to find.
        threshold, f1, precision_there, recall_there: as `metrics.details.best_f1` gives them.
    """

    precision: np.ndarray
    recall: np.ndarray
    truths: int
    threshold: float
    f1: float
    precision_there: float
    recall_there: float

    @property
    def shown_threshold(self) -> float:
        """The threshold, rounded down to a whole per cent for a slider; 0.5 if there is none."""
        return 0.5 if math.isnan(self.threshold) else math.floor(self.threshold * 100) / 100


def curve(judged: Outcomes, index: DetectionIndex, label: int | None = None) -> Curve:
    """Returns the curve of a class; None: of all detections together."""
    chosen = judged.kinds != IGNORED
    wanted = judged.counted
    if label is not None:
        chosen, wanted = chosen & (judged.labels == label), wanted & (index.labels == label)
    truths = int(wanted.sum())
    scores, hits = judged.scores[chosen], judged.kinds[chosen] == CORRECT
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    best = best_f1(scores, hits, truths)
    there = [best[name] for name in ("threshold", "best_F1", "precision", "recall")]
    if not truths:
        return Curve(np.zeros(0), np.zeros(0), truths, *there)
    total = np.cumsum(hits)
    return Curve(total / np.arange(1, len(hits) + 1), total / truths, truths, *there)
