"""hotcoco against pycocotools, the judge: the same COCO figures on drawn detections."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics import scores
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import COCO_FIGURES, by_hotcoco, by_pycocotools, coco_metrics

CLASSES = ("a", "b", "c")


def drawn(seed: int, *, images: int = 8, per_image: int = 12, ties: bool = False, regions: int = 2):
    """Returns (index, detections): some images have no objects, no detections, or neither."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.uniform(0, 150, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(2, 140, (count, 2))], 1)

    counts = rng.integers(0, 6, images) * (rng.random(images) < 0.8)
    truths, labels = boxes(counts.sum()), rng.integers(0, len(CLASSES), counts.sum())
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    index = DetectionIndex(
        image_paths=tuple(f"/data/{i}.jpg" for i in range(images)),
        sizes=np.tile(np.int32([300, 300]), (images, 1)),
        boxes=truths.astype(np.float32),
        labels=labels.astype(np.int32),
        offsets=offsets,
        class_names=CLASSES,
        areas=rng.uniform(100, 20000, len(labels)).astype(np.float32),
        regions=boxes(regions * images).astype(np.float32),
        region_labels=rng.integers(-1, len(CLASSES), regions * images).astype(np.int32),
        region_offsets=np.arange(images + 1, dtype=np.int64) * regions,
    )
    detections = []
    for i in rng.permutation(images)[: images - 1]:
        near, near_labels = index.objects(i)
        near = near.repeat(2, 0) + rng.normal(0, 6, (2 * len(near), 4))
        found = np.concatenate([near, boxes(per_image)]).astype(np.float32)
        scores = rng.random(len(found))
        detections.append(
            ImageDetections(
                int(i),
                np.concatenate([np.minimum(found[:, :2], found[:, 2:]), found[:, 2:]], 1),
                np.round(scores, 1) if ties else scores.astype(np.float32),
                np.concatenate([near_labels.repeat(2), rng.integers(0, len(CLASSES), per_image)]),
            )
        )
    return index, detections


def judged(index, detections):
    """The twelve figures by pycocotools from records written here, not by the package."""
    truths, found = [], []
    for i in range(index.num_images):
        for (x, y, x2, y2), label, area in zip(
            *index.objects(i), index.areas[index.offsets[i] : index.offsets[i + 1]], strict=True
        ):
            box = [float(x), float(y), float(x2) - float(x), float(y2) - float(y)]
            truths.append((i, int(label), box, float(area), 0))
        for (x, y, x2, y2), label in zip(*index.regions_of(i), strict=True):
            box = [float(x), float(y), float(x2) - float(x), float(y2) - float(y)]
            for k in range(len(CLASSES)) if label < 0 else [int(label)]:
                truths.append((i, k, box, box[2] * box[3], 1))
    for one in detections:
        for (x, y, x2, y2), score, label in zip(one.boxes, one.scores, one.labels, strict=True):
            box = [float(x), float(y), float(x2) - float(x), float(y2) - float(y)]
            found.append({"image_id": one.image_id, "category_id": int(label), "bbox": box,
                          "score": float(score)})  # fmt: skip
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = {
            "images": [{"id": i} for i in range(index.num_images)],
            "categories": [{"id": k} for k in range(len(CLASSES))],
            "annotations": [
                {"id": n, **dict(zip(names, truth, strict=True))}
                for n, truth in enumerate(truths, 1)
            ],
        }
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


def figures(metrics):
    return [metrics[name] for name in COCO_FIGURES]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1), st.booleans(), st.integers(0, 3), st.sampled_from([0, 3, 12, 400])
)
def test_the_figures_are_those_of_pycocotools(seed, ties, regions, per_image):
    index, detections = drawn(seed, ties=ties, regions=regions, per_image=per_image, images=5)
    if not any(len(found.scores) for found in detections):
        return
    expected = judged(index, detections)
    np.testing.assert_allclose(figures(coco_metrics(index, detections)), expected, atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_the_arrays_of_both_evaluators_are_equal(ties):
    index, detections = drawn(1, ties=ties, images=30)
    ours, judge = by_hotcoco(index, detections), by_pycocotools(index, detections)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_allclose(ours.eval[name], judge.eval[name], atol=1e-9)
    assert 0.05 < ours.stats[0] < 0.9 and (ours.stats[3:6] > 0).all()


def test_difficult_objects_are_ignored_which_hotcoco_alone_does_not_do():
    index, detections = drawn(2)
    hard = dataclasses.replace(index, difficult=np.arange(len(index.labels)) % 2 == 0)
    expected = by_pycocotools(hard, detections).stats
    expected = np.where(expected < 0, np.nan, expected)
    assert figures(coco_metrics(hard, detections)) == pytest.approx(expected.tolist(), nan_ok=True)
    assert not np.allclose(by_hotcoco(hard, detections).stats, expected, atol=1e-3, equal_nan=True)


def test_nothing_is_printed(capfd):
    coco_metrics(*drawn(3))
    by_pycocotools(*drawn(3))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ties", [False, True])
def test_images_matched_in_parts_give_the_same_arrays(ties, monkeypatch):
    monkeypatch.setattr(scores, "_IMAGES_AT_ONCE", 3)
    index, detections = drawn(11, images=10, ties=ties)
    whole, parts = (f(index, detections) for f in (by_hotcoco, scores.figures_by_hotcoco))
    assert np.array_equal(whole.stats, parts.stats)
    assert np.array_equal(whole.eval["precision"], parts.eval["precision"])
    assert whole.stats[0] > 0
