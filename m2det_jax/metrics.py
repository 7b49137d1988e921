"""Average precision and its relatives, and the detections they are computed from.

An index is a `DetectionIndex` (or anything with its fields image_paths, sizes, boxes, labels,
offsets, class_names). Boxes are xyxy pixels of the original upright image with exclusive x2, y2.
A figure without ground truth behind it is NaN, is left out of means and printed as n/a.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_FIGURES = {
    "AP": "mean over IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "AP_small": "area below 32 x 32 pixels",
    "AP_medium": "area from 32 x 32 to 96 x 96",
    "AP_large": "area above 96 x 96",
    "AR_1": "recall, 1 detection an image",
    "AR_10": "recall, 10 detections an image",
    "AR_100": "recall, 100 detections an image",
    "AR_small": "recall, small",
    "AR_medium": "recall, medium",
    "AR_large": "recall, large",
}


@dataclass(frozen=True)
class ImageDetections:
    """What was detected in one image of an index, in any order.

    image_id: position in the index; boxes [n, 4]; scores [n], finite; labels [n], class ids.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def _check(index, detections: Sequence[ImageDetections]) -> None:
    seen: set[int] = set()
    for found in detections:
        where = f"detections of image {found.image_id}"
        if not 0 <= found.image_id < len(index.image_paths):
            raise ValueError(f"{where}: the index has images 0 to {len(index.image_paths) - 1}")
        if found.image_id in seen:
            raise ValueError(f"{where} are given twice; merge them into one ImageDetections")
        seen.add(found.image_id)
        boxes, scores, labels = map(np.shape, (found.boxes, found.scores, found.labels))
        if len(scores) != 1 or boxes != (*scores, 4) or labels != scores:
            raise ValueError(
                f"{where}: boxes [n, 4], scores [n], labels [n] expected,"
                f" got {boxes}, {scores}, {labels}"
            )
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ValueError(f"{where}: boxes and scores must be finite")
        outside = set(np.unique(found.labels).tolist()) - set(range(len(index.class_names)))
        if outside:
            raise ValueError(
                f"{where}: labels {sorted(outside)} are not among the"
                f" {len(index.class_names)} classes, 0 to {len(index.class_names) - 1}"
            )


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """xyxy [n, 4] to COCO's x, y, width, height, float64 [n, 4]."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def coco_results(index, detections: Sequence[ImageDetections]) -> list[dict]:
    """Detections as COCO result records, ready for json.dump.

    Each has image_id (position in the index), file_name, category_id (class id, from 0),
    category_name, bbox (x, y, width, height) and score. Raises ValueError for detections that do
    not fit the index or are malformed.
    """
    _check(index, detections)
    return [
        {
            "image_id": int(found.image_id),
            "file_name": str(index.image_paths[found.image_id]),
            "category_id": int(label),
            "category_name": index.class_names[int(label)],
            "bbox": box,
            "score": float(score),
        }
        for found in detections
        for box, score, label in zip(
            _xywh(found.boxes).tolist(), found.scores, found.labels, strict=True
        )
    ]


def _coco_dataset(index, annotations: list[dict]) -> COCO:
    """A COCO object of the images and classes of the index, with these annotations."""
    dataset = COCO()
    dataset.dataset = {
        "images": [
            {"id": i, "width": int(width), "height": int(height)}
            for i, (width, height) in enumerate(index.sizes)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(index.class_names)],
        # From 1: COCOeval takes id 0 for "matched with nothing".
        "annotations": [
            {"id": k, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a}
            for k, a in enumerate(annotations, 1)
        ],
    }
    dataset.createIndex()
    return dataset


def _ground_truth(index) -> list[dict]:
    images = np.repeat(np.arange(len(index.image_paths)), np.diff(index.offsets))
    return [
        {"image_id": int(image), "category_id": int(label), "bbox": box}
        for image, label, box in zip(images, index.labels, _xywh(index.boxes).tolist(), strict=True)
    ]


def _mean(precision: np.ndarray) -> float:
    """Mean of the entries that have ground truth (COCOeval marks the others -1), else NaN."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def coco_metrics(index, detections: Sequence[ImageDetections]) -> dict:
    """Scores detections against the ground truth of the index.

    Images without an entry count as images without detections. Returns the twelve COCO figures
    (keys of COCO_FIGURES, by pycocotools, 100 best detections an image), VOC_AP50 (see
    voc_average_precision) and per_class {class name: {"AP", "AP50"}}; floats in 0..1 or NaN.
    Raises ValueError like coco_results.
    """
    results = coco_results(index, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco_dataset(index, _ground_truth(index)), _coco_dataset(index, results), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = [float(value) if value >= 0 else math.nan for value in evaluation.stats]
    precision = evaluation.eval["precision"][..., 0, -1]  # [IoU, recall, class]: any area, 100 best
    return {
        **dict(zip(COCO_FIGURES, figures, strict=True)),
        "VOC_AP50": voc_average_precision(index, detections),
        "per_class": {
            name: {"AP": _mean(precision[..., k]), "AP50": _mean(precision[0, :, k])}
            for k, name in enumerate(index.class_names)
        },
    }


def _pairwise_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU [n, m] of boxes [n, 4] and [m, 4]; 0 where both are empty."""
    low = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    high = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=-1) for b in (boxes_a, boxes_b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return common / np.where(union > 0, union, 1)


def _claims(index, found: ImageDetections, iou_threshold: float) -> np.ndarray:
    """The object (position in index.boxes) each detection points at, -1 for none, int64 [n]."""
    start, stop = index.offsets[found.image_id], index.offsets[found.image_id + 1]
    if start == stop or len(found.scores) == 0:
        return np.full(len(found.scores), -1)
    iou = _pairwise_iou(np.asarray(found.boxes, np.float64), np.float64(index.boxes[start:stop]))
    iou = np.where(np.asarray(found.labels)[:, None] == index.labels[start:stop], iou, -1.0)
    return np.where(iou.max(1) >= iou_threshold, start + iou.argmax(1), -1)


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
    index, detections: Sequence[ImageDetections], *, iou_threshold: float = 0.5
) -> float:
    """Mean over the classes with objects of the VOC average precision; NaN without any object.

    A detection points at the object of its class it overlaps most; it is a hit if their IoU
    reaches the threshold and no better-scored detection points there. All objects count, none is
    "difficult". Raises ValueError like coco_results.
    """
    _check(index, detections)
    # An empty first part, so that no detections at all need no case of their own.
    scores = np.concatenate([[], *(np.asarray(found.scores) for found in detections)])
    labels = np.concatenate([[], *(np.asarray(found.labels) for found in detections)])
    claims = np.concatenate([[], *(_claims(index, found, iou_threshold) for found in detections)])
    order = np.argsort(-scores, kind="stable")
    first = np.unique(claims[order], return_index=True)[1]
    hits = np.zeros(len(order), bool)
    hits[first] = True
    hits &= claims[order] >= 0
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    values = [
        average_precision(hits[labels[order] == label], int(counts[label]))
        for label in np.flatnonzero(counts)
    ]
    return float(np.mean(values)) if values else math.nan


def _number(value: float) -> str:
    return f"{'n/a':>6}" if math.isnan(value) else f"{value:6.3f}"


def format_table(metrics: dict) -> str:
    """What coco_metrics returned as lines of text: one a figure, then one a class."""
    meanings = {**COCO_FIGURES, "VOC_AP50": "VOC, area under the curve, IoU 0.50"}
    lines = [f"{name:<10}{_number(metrics[name])}   {meanings[name]}" for name in meanings]
    width = max([len(name) for name in metrics["per_class"]] + [len("class"), 8]) + 2
    lines += ["", f"{'class':<{width}}{'AP':>6}  {'AP50':>6}"]
    for name, values in metrics["per_class"].items():
        lines.append(f"{name:<{width}}{_number(values['AP'])}  {_number(values['AP50'])}")
    return "\n".join(lines)
