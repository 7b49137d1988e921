"""Average precision and its relatives, and the detections they are computed from.

An index is a `DetectionIndex`. Boxes are xyxy pixels of the original upright image with exclusive
x2, y2. Difficult objects are neither asked for nor counted against what finds them, and in regions
(crowds, "don't care") detections that match no object do not count, as with COCO's iscrowd. A
figure without ground truth behind it is NaN, is left out of means and printed as n/a.
"""

import contextlib
import io
import math
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections, check_detections, xywh
from m2det_jax.metrics.voc import average_precision, voc_average_precision

__all__ = [
    "COCO_FIGURES",
    "ImageDetections",
    "average_precision",
    "coco_metrics",
    "coco_results",
    "format_table",
    "voc_average_precision",
]

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


def coco_results(index: DetectionIndex, detections: Sequence[ImageDetections]) -> list[dict]:
    """Detections as COCO result records, ready for json.dump.

    Each has image_id and category_id (the data set's own where it has some, else the position in
    the index and the class id from 0), file_name, category_name, bbox (x, y, width, height) and
    score. What is detected of a class that the data set does not have is left out. Raises
    ValueError for detections that do not fit the index or are malformed.
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


def _coco_dataset(index: DetectionIndex, annotations: list[dict]) -> COCO:
    """A COCO object of the images and classes of the index, with these annotations."""
    dataset = COCO()
    dataset.dataset = {
        "images": [
            {"id": i, "width": int(width), "height": int(height)}
            for i, (width, height) in enumerate(index.sizes)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(index.class_names)],
        # From 1: COCOeval takes id 0 for "matched with nothing".
        "annotations": [{"id": k, "iscrowd": 0, **a} for k, a in enumerate(annotations, 1)],
    }
    dataset.createIndex()
    return dataset


def _ground_truth(index: DetectionIndex) -> list[dict]:
    """The objects and, as crowds of each class that they stand for, the regions of an index."""
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


def _found_records(detections: Sequence[ImageDetections]) -> list[dict]:
    """Detections as records with the position of the image and the class id from 0."""
    return [
        {
            "image_id": int(found.image_id),
            "category_id": int(label),
            "bbox": box,
            "area": box[2] * box[3],
            "score": float(score),
        }
        for found in detections
        for box, score, label in zip(
            xywh(found.boxes).tolist(), found.scores, found.labels, strict=True
        )
    ]


class _Evaluation(COCOeval):
    """COCOeval that ignores difficult objects as well as crowds."""

    def _prepare(self) -> None:
        super()._prepare()  # sets "ignore" anew, from "iscrowd" alone
        for truths in self._gts.values():
            for truth in truths:
                truth["ignore"] = truth["ignore"] or truth.get("difficult", False)


def _mean(precision: np.ndarray) -> float:
    """Mean of the entries that have ground truth (COCOeval marks the others -1), else NaN."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def coco_metrics(index: DetectionIndex, detections: Sequence[ImageDetections]) -> dict:
    """Scores detections against the ground truth of the index.

    Images without an entry count as images without detections. Returns the twelve COCO figures
    (keys of COCO_FIGURES, by pycocotools, 100 best detections an image), VOC_AP50 (see
    voc_average_precision) and per_class {class name: {"AP", "AP50"}}; floats in 0..1 or NaN.
    Raises ValueError like coco_results.
    """
    check_detections(index, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(
            _coco_dataset(index, _ground_truth(index)),
            _coco_dataset(index, _found_records(detections)),
            "bbox",
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
