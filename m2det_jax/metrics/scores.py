"""Scores of detections: COCO's average precision and recall, PASCAL VOC's average precision.

Boxes are xyxy pixels of the original upright image with exclusive x2, y2. Difficult objects need
not be found, and their detections do not count. In regions (crowds, "don't care") detections that
match no object do not count, as with COCO's iscrowd. A figure without ground truth is NaN; it is
left out of means and printed as n/a.

hotcoco computes COCO's figures, many times faster than pycocotools and with the same numbers. It
cannot ignore difficult objects; where there are some, pycocotools computes them.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections, check_detections, xywh

_IMAGES_AT_ONCE = 1000  # whose annotations are Python objects at the same time
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


def coco_results(
    index: DetectionIndex, detections: Sequence[ImageDetections]
) -> list[dict[str, Any]]:
    """Returns detections as COCO result records, ready for json.dump.

    Each has image_id and category_id (the data set's own where it has some, else the position in
    the index and the class id from 0), file_name, category_name, bbox (x, y, width, height) and
    score. Detections of a class that the data set does not have are left out.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    check_detections(index, detections)
    return [
        {
            "image_id": index.original_image_id(found.image_id),
            "file_name": str(index.image_paths[found.image_id]),
            "category_id": index.original_class_id(label),
            "category_name": index.class_names[int(label)],
            "bbox": box,
            "score": float(score),
        }
        for found in detections
        for box, score, label in zip(
            xywh(found.boxes).tolist(), found.scores, found.labels, strict=True
        )
        if index.original_class_id(label) is not None
    ]


def _dataset(index: DetectionIndex, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the images and classes of the index, with these annotations, in COCO's form."""
    return {
        "images": [
            {"id": i, "width": int(width), "height": int(height)}
            for i, (width, height) in enumerate(index.sizes)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(index.class_names)],
        # From 1: COCOeval takes id 0 for "matched with nothing".
        "annotations": [{"id": k, "iscrowd": 0, **a} for k, a in enumerate(annotations, 1)],
    }


def _ground_truth(index: DetectionIndex) -> list[dict[str, Any]]:
    """Returns the objects of an index, and its regions as crowds of each class they stand for."""
    images = np.repeat(np.arange(len(index.image_paths)), np.diff(index.offsets))
    objects = [
        {"image_id": i, "category_id": label, "bbox": box, "area": area, "difficult": difficult}
        for i, label, box, area, difficult in zip(
            images.tolist(),
            index.labels.tolist(),
            xywh(index.boxes).tolist(),
            index.areas.tolist(),
            index.difficult.tolist(),
            strict=True,
        )
    ]
    images = np.repeat(np.arange(len(index.image_paths)), np.diff(index.region_offsets))
    every_class = range(len(index.class_names))
    return objects + [
        {"image_id": i, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 1}
        for i, label, box in zip(
            images.tolist(), index.region_labels.tolist(), xywh(index.regions).tolist(),
            strict=True,
        )
        for k in (every_class if label < 0 else [label])
    ]  # fmt: skip


def _found_rows(detections: Sequence[ImageDetections]) -> np.ndarray:
    """Returns detections as float64 [n, 7]: image, x, y, width, height, score, class id from 0."""
    parts = [
        np.column_stack(
            [np.full(len(found.scores), found.image_id), xywh(found.boxes), found.scores,
             found.labels]
        )
        for found in detections
    ]  # fmt: skip
    return np.concatenate([np.zeros((0, 7)), *parts])


class _Evaluation(COCOeval):
    """COCOeval that ignores difficult objects as well as crowds."""

    def _prepare(self) -> None:
        super()._prepare()  # sets "ignore" anew, from "iscrowd" alone
        for truths in self._gts.values():
            for truth in truths:
                truth["ignore"] = truth["ignore"] or truth.get("difficult", False)


def by_hotcoco(index: DetectionIndex, detections: Sequence[ImageDetections]) -> hotcoco.COCOeval:
    """Returns hotcoco's evaluation of boxes, finished. It cannot ignore difficult objects."""
    truth = hotcoco.COCO(_dataset(index, _ground_truth(index)))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(_found_rows(detections)), "bbox")
    return _finished(evaluation)


def figures_by_hotcoco(
    index: DetectionIndex, detections: Sequence[ImageDetections]
) -> hotcoco.COCOeval:
    """Returns what `by_hotcoco` does, with the same numbers, but without the matches of each image.

    Images are matched part by part: 10 million detections take 1 GiB in place of 4.
    """
    categories = _dataset(index, [])["categories"]
    evaluation = hotcoco.StreamingEval(categories, "bbox")
    by_image = {found.image_id: found for found in detections}
    for start in range(0, index.num_images, _IMAGES_AT_ONCE):
        ids = range(start, min(start + _IMAGES_AT_ONCE, index.num_images))
        part = index.subset(list(ids))
        truth = _dataset(part, _ground_truth(part))
        found = _found_rows([by_image[i] for i in ids if i in by_image])
        # An image is known by its number in the whole index.
        for image in truth["images"]:
            image["id"] += start
        for annotation in truth["annotations"]:
            annotation["image_id"] += start
        evaluation.update(truth["images"], truth["annotations"], found)
    return _finished(evaluation.finalize(), evaluated=True)


def by_pycocotools(index: DetectionIndex, detections: Sequence[ImageDetections]) -> COCOeval:
    """Returns the evaluation of boxes by pycocotools, finished; difficult objects are ignored."""
    names = ("image_id", "category_id", "bbox", "area", "score")
    found = [
        dict(zip(names, (int(i), int(label), [x, y, w, h], w * h, score), strict=True))
        for i, x, y, w, h, score, label in _found_rows(detections).tolist()
    ]
    sets = []
    for annotations in (_ground_truth(index), found):
        dataset = COCO()
        dataset.dataset = _dataset(index, annotations)
        with contextlib.redirect_stdout(io.StringIO()):
            dataset.createIndex()
        sets.append(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(*sets, "bbox")
    return _finished(evaluation)


def _finished(evaluation: Any, *, evaluated: bool = False) -> Any:
    """Returns a COCO evaluation with its arrays and its twelve figures; prints nothing.

    Args:
        evaluated: its images are matched already.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if not evaluated:
            evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def coco_evaluation(index: DetectionIndex, detections: Sequence[ImageDetections]) -> Any:
    """Returns COCO's evaluation, finished, by the library that can do it.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    check_detections(index, detections)
    return (by_pycocotools if index.difficult.any() else figures_by_hotcoco)(index, detections)


def mean_precision(precision: np.ndarray) -> float:
    """Returns the mean of entries with ground truth (COCOeval marks others -1); NaN without."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def pairwise_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Returns the IoU [n, m] of boxes [n, 4] and [m, 4]; 0 where both are empty."""
    low = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    high = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=-1) for b in (boxes_a, boxes_b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return common / np.where(union > 0, union, 1)


def _claims(index: DetectionIndex, found: ImageDetections, iou_threshold: float) -> np.ndarray:
    """Returns what each detection points at, int64 [n].

    It is an object (row of index.boxes); -1: nothing; -2: something that is ignored, a difficult
    object, or no object but a region.
    """
    if len(found.scores) == 0:
        return np.zeros(0, np.int64)
    boxes, labels = np.asarray(found.boxes, np.float64), np.asarray(found.labels)[:, None]
    rows = np.arange(index.offsets[found.image_id], index.offsets[found.image_id + 1])
    # One more object, that nothing overlaps, so that an image without any needs no case of its own.
    iou = np.full((len(boxes), len(rows) + 1), -1.0)
    iou[:, :-1] = pairwise_iou(boxes, index.boxes[rows].astype(np.float64))
    iou[:, :-1][labels != index.labels[rows]] = -1.0
    claims = np.where(iou.max(1) >= iou_threshold, np.append(rows, -1)[iou.argmax(1)], -1)
    claims[np.append(index.difficult, False)[claims]] = -2
    regions, region_labels = index.regions_of(found.image_id)
    covered = _share_inside(boxes, regions.astype(np.float64)) >= iou_threshold
    covered &= (region_labels < 0) | (labels == region_labels)
    return np.where((claims == -1) & covered.any(1), -2, claims)


def _share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Returns the share of each box [n, 4] that lies in each region [m, 4]: [n, m]."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=-1)[:, None]
    return np.prod(np.maximum(high - low, 0), axis=-1) / np.where(areas > 0, areas, 1)


def average_precision(hits: np.ndarray, num_objects: int) -> float:
    """Returns the area under the precision-recall curve, all points (PASCAL VOC since 2010).

    Precision is made non-increasing from the right.

    Args:
        hits: bool [n], whether each detection, best score first, found an object of its own.
        num_objects: objects to find; 0: the result is NaN.
    """
    if num_objects == 0:
        return math.nan
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[np.asarray(hits, bool)].sum() / num_objects)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The detections of a data set that count, best score first.

    Attributes:
        scores: float64 [n].
        labels: int64 [n], class ids.
        hits: bool [n], whether a detection found an object of its own.
        objects: int64 [n], the object of a hit, a row of index.boxes; else -1 or an object that a
            better-scored detection found.
        boxes: float64 [n, 4], xyxy.
    """

    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray
    objects: np.ndarray
    boxes: np.ndarray


def rank(
    index: DetectionIndex, detections: Sequence[ImageDetections], *, iou_threshold: float = 0.5
) -> Ranked:
    """Returns the detections that count, with their hits by the rule of PASCAL VOC.

    A detection points at the object of its class that it overlaps most. It is a hit if their IoU
    reaches the threshold and no better-scored detection points there. Detections that point at a
    difficult object, or at no object but a region, do not count and are left out.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    check_detections(index, detections)
    # An empty first part, so that no detections at all need no case of their own.
    rows = _found_rows(detections)
    claims = np.concatenate([[], *(_claims(index, found, iou_threshold) for found in detections)])
    boxes = np.concatenate([np.zeros((0, 4)), *(found.boxes for found in detections)])
    order = np.argsort(-rows[:, 5], kind="stable")
    order = order[claims[order] > -2]
    claims = claims[order].astype(np.int64)
    hits = np.zeros(len(order), bool)
    hits[np.unique(claims, return_index=True)[1]] = True
    hits &= claims >= 0
    return Ranked(rows[order, 5], rows[order, 6].astype(np.int64), hits, claims, boxes[order])


def without_ignored(
    index: DetectionIndex, detections: Sequence[ImageDetections], *, iou_threshold: float = 0.5
) -> tuple[DetectionIndex, list[ImageDetections]]:
    """Returns an index without difficult objects and regions, and the detections that count.

    The detections are those of `rank`.
    """
    objects = np.flatnonzero(~index.difficult)
    kept = dataclasses.replace(
        index,
        boxes=index.boxes[objects],
        labels=index.labels[objects],
        offsets=np.searchsorted(objects, index.offsets).astype(np.int64),
        difficult=index.difficult[objects],
        areas=index.areas[objects],
        regions=index.regions[:0],
        region_labels=index.region_labels[:0],
        region_offsets=np.zeros_like(index.region_offsets),
        places=None,
    )
    counted = []
    for found in detections:
        some = _claims(index, found, iou_threshold) > -2
        counted.append(
            ImageDetections(
                found.image_id,
                np.asarray(found.boxes)[some],
                np.asarray(found.scores)[some],
                np.asarray(found.labels)[some],
            )
        )
    return kept, counted


def objects_of(index: DetectionIndex) -> np.ndarray:
    """Returns the number of objects of each class that are asked for, int64 [classes]."""
    return np.bincount(index.labels[~index.difficult], minlength=len(index.class_names))


def voc_average_precision(
    index: DetectionIndex, detections: Sequence[ImageDetections], *, iou_threshold: float = 0.5
) -> float:
    """Returns the VOC average precision, its mean over the classes with objects; NaN without any.

    Hits are those of `rank`. Difficult objects do not count.

    Raises:
        ValueError: as `coco_results`.
    """
    ranked = rank(index, detections, iou_threshold=iou_threshold)
    counts = objects_of(index)
    values = [
        average_precision(ranked.hits[ranked.labels == label], int(counts[label]))
        for label in np.flatnonzero(counts)
    ]
    return float(np.mean(values)) if values else math.nan


Score = Callable[[DetectionIndex, Sequence[ImageDetections]], float]
# Figures beside COCO's: {name: (meaning, function)}. A new one is listed and printed everywhere.
OTHER_FIGURES: dict[str, tuple[str, Score]] = {
    "VOC_AP50": ("VOC, area under the curve, IoU 0.50", voc_average_precision),
}


def coco_metrics(index: DetectionIndex, detections: Sequence[ImageDetections]) -> dict[str, Any]:
    """Scores detections against the ground truth of the index.

    Images without an entry count as images without detections.

    Returns:
        The twelve COCO figures (keys of COCO_FIGURES, 100 best detections an image and class),
        those of OTHER_FIGURES, and per_class {class name: {"AP", "AP50"}}; floats in 0..1 or NaN.

    Raises:
        ValueError: as `coco_results`.
    """
    evaluation = coco_evaluation(index, detections)
    figures = [float(value) if value >= 0 else math.nan for value in evaluation.stats]
    precision = evaluation.eval["precision"][..., 0, -1]  # [IoU, recall, class]: any area, 100 best
    return {
        **dict(zip(COCO_FIGURES, figures, strict=True)),
        **{name: score(index, detections) for name, (_, score) in OTHER_FIGURES.items()},
        "per_class": {
            name: {
                "AP": mean_precision(precision[..., k]),
                "AP50": mean_precision(precision[0, :, k]),
            }
            for k, name in enumerate(index.class_names)
        },
    }


def _number(value: float) -> str:
    return f"{'n/a':>6}" if math.isnan(value) else f"{value:6.3f}"


def format_table(metrics: dict[str, Any]) -> str:
    """Returns the result of coco_metrics as lines of text: one a figure, then one a class."""
    meanings = COCO_FIGURES | {name: meaning for name, (meaning, _) in OTHER_FIGURES.items()}
    lines = [f"{name:<10}{_number(metrics[name])}   {meanings[name]}" for name in meanings]
    width = max([len(name) for name in metrics["per_class"]] + [len("class"), 8]) + 2
    lines += ["", f"{'class':<{width}}{'AP':>6}  {'AP50':>6}"]
    for name, values in metrics["per_class"].items():
        lines.append(f"{name:<{width}}{_number(values['AP'])}  {_number(values['AP50'])}")
    return "\n".join(lines)
