"""Likely label errors: cases by hand, and errors planted in the labels of a good detector."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from test_outcomes import TRUTH, an_index, found

from m2det_jax.data.places import Places
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.report import suspects as sus
from m2det_jax.report.outcomes import outcomes


def ranked(index, detections):
    judged = outcomes(index, detections)
    return sus.suspects(index, judged), judged


def said(index, rows) -> list[tuple[str, int, float]]:
    """(kind, object, suspicion) of every suspect, the most suspicious first."""
    one = ranked(index, found(rows))[0]
    kinds = [sus.KINDS[kind] for kind in one.kinds]
    suspicion = [pytest.approx(value) for value in one.suspicion]
    return list(zip(kinds, one.rows.tolist(), suspicion, strict=True))


def test_a_label_that_the_detector_confirms_is_not_suspicious():
    assert said(an_index([TRUTH]), [(10, 10, 30, 30, 0.9, 0)]) == [("badly placed box", 0, 0)]
    assert said(an_index([TRUTH]), []) == [("badly placed box", 0, 0)]


def test_another_class_in_its_place():
    index = an_index([TRUTH])
    assert said(index, [(10, 10, 30, 30, 0.9, 1)]) == [("wrong class", 0, 0.9)]
    both = [(10, 10, 30, 30, 0.9, 1), (10, 10, 30, 30, 0.4, 0)]
    assert said(index, both) == [("wrong class", 0, 0.9 * 0.6)]
    poor = [(10, 10, 30, 15, 0.8, 1)]  # IoU 1/4
    assert said(index, poor) == [("wrong class", 0, 0.8 * 0.5)]


def test_its_class_in_another_place():
    index = an_index([TRUTH])
    for x2, suspicion in ((30, 0), (25, 0.8 * 0.5), (20, 0.8), (14, 0.8)):
        assert said(index, [(10, 10, x2, 30, 0.8, 0)]) == [("badly placed box", 0, suspicion)]


def test_an_object_that_nobody_labelled():
    rows = [(10, 10, 30, 30, 0.9, 0), (50, 50, 70, 70, 0.8, 1), (50, 50, 70, 62, 0.7, 1)]
    assert said(an_index([TRUTH]), rows) == [("missing label", -1, 0.8), ("badly placed box", 0, 0)]
    rows[2] = (60, 50, 80, 70, 0.7, 1)  # IoU 1/3 with the better one
    assert said(an_index([TRUTH]), rows)[:2] == [
        ("missing label", -1, 0.8), ("missing label", -1, 0.7 * 2 / 3),
    ]  # fmt: skip
    region = an_index([TRUTH], regions=[(45, 45, 90, 90)])
    assert said(region, rows[:2]) == [("badly placed box", 0, 0)]
    near = [(10, 10, 30, 30, 0.9, 0), (20, 10, 40, 30, 0.6, 0)]  # IoU 1/3 with the object
    assert said(an_index([TRUTH]), near)[0] == ("missing label", -1, 0.6 * 2 / 3)


def test_a_moved_box_takes_the_detection_of_its_object_alone():
    """Two neighbours, the second of which is moved onto the first: one label is suspected."""
    index = an_index([(10, 10, 30, 30, 0), (24, 10, 44, 30, 0)])
    rows = [(10, 10, 30, 30, 0.9, 0), (32, 10, 52, 30, 0.8, 0)]
    moved = 0.8 * 2 * (1 - 12 / 28)
    assert said(index, rows) == [
        ("badly placed box", 1, min(0.8, moved)), ("badly placed box", 0, 0),
    ]  # fmt: skip


def a_data_set(rng, images=40, per_image=6):
    """Objects of two classes on a grid of 300 x 200, and what a good detector finds of them."""
    truths, detections = [], []
    for i in range(images):
        corner = np.array(
            [[40 + 90 * (k % 3), 30 + 90 * (k // 3)] for k in range(per_image)], float
        )
        corner += rng.uniform(-10, 10, corner.shape)
        boxes = np.hstack([corner, corner + rng.uniform(30, 50, corner.shape)])
        labels = rng.integers(0, 2, per_image)
        truths.append((boxes, labels))
        moved = boxes + rng.normal(0, 1.5, boxes.shape)
        noise = rng.uniform(0, 250, (5, 2))
        noise = np.hstack([noise, noise + 30])
        scores = np.append(rng.uniform(0.6, 1, per_image), rng.uniform(0, 0.3, 5))
        classes = np.append(labels, rng.integers(0, 2, 5))
        detections.append(ImageDetections(i, np.vstack([moved, noise]), scores, classes))
    index = dataclasses.replace(
        an_index(np.zeros((0, 5))),
        image_paths=tuple(f"/{i}.jpg" for i in range(images)),
        sizes=np.tile(np.int32([300, 200]), (images, 1)),
        boxes=np.concatenate([b for b, _ in truths]).astype(np.float32),
        labels=np.concatenate([k for _, k in truths]).astype(np.int32),
        offsets=np.arange(images + 1) * per_image,
        difficult=None, areas=None, regions=None, region_labels=None, region_offsets=None,
    )  # fmt: skip
    return index, detections


@pytest.mark.parametrize("seed", range(3))
def test_planted_errors_come_first(seed):
    """12 of each kind among 240 labels: a good detector ranks all 36 before everything else."""
    rng = np.random.default_rng(seed)
    index, detections = a_data_set(rng)
    rows = rng.permutation(len(index.labels))[:36]
    swapped, moved, dropped = rows[:12], rows[12:24], rows[24:]
    index.labels[swapped] = 1 - index.labels[swapped]
    sides = index.boxes[moved, 2:] - index.boxes[moved, :2]
    index.boxes[moved] += np.tile(sides * rng.uniform(0.35, 0.5, sides.shape), 2)
    gone = index.boxes[dropped]  # a copy
    index.boxes[dropped] = [0, 0, 1, 1]  # nothing is there
    one, judged = ranked(index, detections)
    assert sorted(one.rows[one.rows >= 0]) == list(range(len(index.labels)))
    assert (np.diff(one.suspicion) <= 0).all() and 0 <= one.suspicion.min() <= one.suspicion[0] <= 1
    first = slice(0, 36)
    for kind, planted in ((sus.WRONG_CLASS, swapped), (sus.MISPLACED, moved)):
        assert set(one.rows[first][one.kinds[first] == kind]) == set(planted)
    missing = judged.boxes[one.found[first][one.kinds[first] == sus.MISSING]]
    assert len(missing) == 12
    assert all(np.abs(missing - box).max(1).min() < 8 for box in gone)
    assert one.likely() == dict.fromkeys(sus.KINDS, 12)


def test_the_least_suspicious_missing_labels_are_dropped(monkeypatch):
    rows = [(10 * k, 60, 10 * k + 8, 70, score, 0) for k, score in enumerate((0.3, 0.9, 0.2, 0.5))]
    monkeypatch.setattr(sus, "MAX_MISSING", 2)
    assert [one[2] for one in said(an_index([TRUTH]), rows)] == [0.9, 0.5, 0]


def test_the_list_has_every_label_in_order_and_says_where_it_stands():
    index = dataclasses.replace(
        an_index([TRUTH, (50, 50, 70, 70, 1)]),
        places=Places(("val.csv",), np.array([0]), np.array([1]), np.array([1, 2])),
    )
    rows = [(10, 10, 30, 30, 0.9, 1), (80, 80, 90, 90, 0.99995, 0)]
    one, judged = ranked(index, found(rows))
    lines = list(csv.reader(io.StringIO(sus.suspects_csv(one, index, judged))))
    assert tuple(lines[0]) == sus.COLUMNS
    assert lines[1:] == [
        ["/x.jpg", "", "missing label", "1.0000", *[""] * 5,
         "a", "80.0", "80.0", "90.0", "90.0", "0.9999"],
        ["/x.jpg", "val.csv:1", "wrong class", "0.9000", "a", "10.0", "10.0", "30.0", "30.0",
         "b", "10.0", "10.0", "30.0", "30.0", "0.9000"],
        ["/x.jpg", "val.csv:2", "badly placed box", "0.0000", "b", "50.0", "50.0", "70.0", "70.0",
         *[""] * 6],
    ]  # fmt: skip
    assert sus.in_words(one, 1, index, judged) == "wrong class? It looks like b, suspicion 0.90"
