"""Details of an evaluation: figures of each class, recall by size and crowding, errors of boxes.

All but AP by size and the costs of errors are at IoU 0.50 by the rule of PASCAL VOC, that of
`scores.rank`. A figure without objects or without hits is NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.diagnosis import calibration, error_costs, format_diagnosis
from m2det_jax.metrics.scores import (
    Ranked,
    average_precision,
    coco_evaluation,
    mean_precision,
    objects_of,
    pairwise_iou,
    rank,
)

SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
# By the largest IoU with another object of the image, of any class.
CROWDING = {"apart": (-math.inf, 0.0), "touching": (0.0, 0.3), "overlapping": (0.3, math.inf)}


def eleven_point_precision(hits: np.ndarray, num_objects: int) -> float:
    """Returns the average precision at the recalls 0, 0.1, ..., 1 (PASCAL VOC 2007).

    Args:
        hits: bool [n], whether each detection, best score first, found an object of its own.
        num_objects: objects to find; 0: the result is NaN.
    """
    if num_objects == 0:
        return math.nan
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    # Recall reaches k / 10: in whole numbers, because 3 * 0.1 is more than 0.3.
    best = [precision[10 * found >= k * num_objects].max(initial=0.0) for k in range(11)]
    return float(np.mean(best))


def best_f1(scores: np.ndarray, hits: np.ndarray, num_objects: int) -> dict[str, float]:
    """Returns the threshold of the score with the best F1, and what it gives.

    Args:
        scores: [n], best first.
        hits: bool [n].
        num_objects: objects to find.

    Returns:
        best_F1, threshold, precision and recall, with all detections whose score is at least the
        threshold. Of equal F1 the highest threshold is taken. NaN without objects; without
        detections the threshold and precision are NaN.
    """
    if num_objects == 0 or len(scores) == 0:
        none = math.nan if num_objects == 0 else 0.0
        return {"best_F1": none, "threshold": math.nan, "precision": math.nan, "recall": none}
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # equal scores stay together
    found = np.cumsum(hits)[ends]
    f1 = 2 * found / (ends + 1 + num_objects)
    k = int(f1.argmax())
    return {
        "best_F1": float(f1[k]),
        "threshold": float(scores[ends[k]]),
        "precision": float(found[k] / (ends[k] + 1)),
        "recall": float(found[k] / num_objects),
    }


def crowding(index: DetectionIndex) -> np.ndarray:
    """Returns the largest IoU of each object with another of its image, float64 [K]; 0 if alone."""
    largest = np.zeros(len(index.labels))
    for first, last in zip(index.offsets[:-1], index.offsets[1:], strict=True):
        if last - first > 1:
            boxes = index.boxes[first:last].astype(np.float64)
            iou = pairwise_iou(boxes, boxes)
            np.fill_diagonal(iou, 0)
            largest[first:last] = iou.max(1)
    return largest


def _recall_of_groups(
    groups: dict[str, np.ndarray], asked: np.ndarray, found: np.ndarray
) -> dict[str, dict[str, float]]:
    """Returns the objects asked for and the share that is found, of each group of objects."""
    counts = {name: int((member & asked).sum()) for name, member in groups.items()}
    return {
        name: {
            "objects": counts[name],
            "recall": float((member & asked & found).sum() / counts[name])
            if counts[name]
            else math.nan,
        }
        for name, member in groups.items()
    }


def box_errors(boxes: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Returns how far matched boxes are from their objects, on average.

    Args:
        boxes, truths: xyxy, [n, 4] both, row by row.

    Returns:
        matched: n. position: distance of the centres, divided by the square root of the object's
        area. size: difference of the sides, divided by the object's side, mean of width and height.
        NaN without boxes.
    """
    boxes, truths = boxes.astype(np.float64), truths.astype(np.float64)
    if len(boxes) == 0:
        return {"matched": 0, "position": math.nan, "size": math.nan}
    sides = truths[:, 2:] - truths[:, :2]
    moved = ((boxes[:, :2] + boxes[:, 2:]) - (truths[:, :2] + truths[:, 2:])) / 2
    grown = (boxes[:, 2:] - boxes[:, :2]) / sides - 1
    distance = np.hypot(*moved.T) / np.sqrt(sides.prod(1))
    return {
        "matched": len(boxes),
        "position": float(distance.mean()),
        "size": float(np.abs(grown).mean()),
    }


def _class_figures(ranked: Ranked, label: int, num_objects: int) -> dict[str, float]:
    mine = ranked.labels == label
    hits = ranked.hits[mine]
    return {
        "objects": num_objects,
        "VOC_AP50": average_precision(hits, num_objects),
        "VOC07_AP50": eleven_point_precision(hits, num_objects),
        **best_f1(ranked.scores[mine], hits, num_objects),
    }


def _ap_by_size(
    index: DetectionIndex, detections: Sequence[ImageDetections]
) -> list[dict[str, float]]:
    """Returns COCO's AP of small, medium and large objects of each class."""
    precision = coco_evaluation(index, detections).eval["precision"][..., -1]
    return [
        {f"AP_{size}": mean_precision(precision[:, :, k, i]) for i, size in enumerate(SIZES, 1)}
        for k in range(len(index.class_names))
    ]


def details(index: DetectionIndex, detections: Sequence[ImageDetections]) -> dict[str, Any]:
    """Returns figures beside those of `coco_metrics`, for an evaluation once trained.

    Returns:
        VOC07_AP50: mean over the classes with objects, 11 points.
        weighted_AP50: mean of VOC AP50, each class weighted by its objects (keras-retinanet's mAP).
        class_details: {class name: objects, VOC_AP50, VOC07_AP50, best_F1, threshold, precision,
        recall, AP_small, AP_medium, AP_large}; precision and recall at the threshold of the best
        F1, the last three by COCO's rule.
        recall_by_size, recall_by_crowding: {group: {"objects", "recall"}}, with each class's
        detections from its threshold up. Sizes are COCO's, by the areas of the index.
        box_errors: that of `box_errors`, for the hits from those thresholds up.
        error_costs, calibration: those of `diagnosis`.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    ranked, counts = rank(index, detections), objects_of(index)
    classes = [_class_figures(ranked, k, int(n)) for k, n in enumerate(counts)]
    for one, by_size in zip(classes, _ap_by_size(index, detections), strict=True):
        one |= by_size
    # NaN, of a class without objects or detections, lets nothing pass.
    used = ranked.scores >= np.array([one["threshold"] for one in classes])[ranked.labels]
    hits = ranked.hits & used
    objects = ranked.objects[hits]
    found = np.isin(np.arange(len(index.labels)), objects)
    overlap, asked = crowding(index), ~index.difficult
    with_objects = [k for k, n in enumerate(counts) if n]
    averages = {
        name: float(np.average([classes[k][key] for k in with_objects], weights=weights))
        if with_objects
        else math.nan
        for name, key, weights in (
            ("VOC07_AP50", "VOC07_AP50", None),
            ("weighted_AP50", "VOC_AP50", counts[with_objects]),
        )
    }
    sizes = {n: (index.areas >= low) & (index.areas < high) for n, (low, high) in SIZES.items()}
    crowds = {n: (overlap > low) & (overlap <= high) for n, (low, high) in CROWDING.items()}
    return averages | {
        "class_details": dict(zip(index.class_names, classes, strict=True)),
        "recall_by_size": _recall_of_groups(sizes, asked, found),
        "recall_by_crowding": _recall_of_groups(crowds, asked, found),
        "box_errors": box_errors(ranked.boxes[hits], index.boxes[objects]),
        "error_costs": error_costs(index, detections),
        "calibration": calibration(ranked),
    }


def _number(value: float, width: int) -> str:
    return f"{'n/a':>{width}}" if math.isnan(value) else f"{value:{width}.3f}"


def format_details(metrics: dict[str, Any], figures: dict[str, Any]) -> str:
    """Returns a short table as text: a line a class, then recall by size and by crowding.

    Args:
        metrics: the result of `coco_metrics`.
        figures: the result of `details` on the same data.
    """
    width = max([len(name) for name in figures["class_details"]] + [8]) + 2
    columns = ("threshold", "precision", "recall")
    lines = [f"{'class':<{width}}{'objects':>8}{'AP':>7}{'AP50':>7}  best F1 at: threshold"
             "  precision  recall"]  # fmt: skip
    for name, one in figures["class_details"].items():
        scores = metrics["per_class"][name]
        line = f"{name:<{width}}{one['objects']:>8}" + _number(scores["AP"], 7)
        line += _number(scores["AP50"], 7) + _number(one["best_F1"], 9)
        widths = (14, 11, 8)
        line += "".join(_number(one[c], w) for c, w in zip(columns, widths, strict=True))
        lines.append(line)
    for title in ("recall_by_size", "recall_by_crowding"):
        parts = [f"{name} {_number(one['recall'], 0)} of {one['objects']}"
                 for name, one in figures[title].items()]  # fmt: skip
        lines.append(f"{title.replace('_', ' ')}: " + ", ".join(parts))
    errors = figures["box_errors"]
    lines.append(
        f"error of {errors['matched']} matched boxes: position {_number(errors['position'], 0)}"
        f" and size {_number(errors['size'], 0)} of the object's side"
    )
    lines.append(format_diagnosis(figures["error_costs"], figures["calibration"]))
    return "\n".join(lines)
