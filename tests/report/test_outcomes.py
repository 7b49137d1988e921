"""Outcomes of detections: cases that can be checked by hand, and properties on random ones."""

import numpy as np
import pytest

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.report import outcomes as oc

TRUTH = (10, 10, 30, 30, 0)


def an_index(truths, difficult=None, regions=()) -> DetectionIndex:
    """One image of 100 x 100 with truths (x1, y1, x2, y2, label) and regions of any class."""
    truths = np.array(truths, float).reshape(-1, 5)
    return DetectionIndex(
        image_paths=("/x.jpg",), sizes=np.array([[100, 100]], np.int32),
        boxes=truths[:, :4].astype(np.float32), labels=truths[:, 4].astype(np.int32),
        offsets=np.array([0, len(truths)]), class_names=("a", "b"),
        difficult=None if difficult is None else np.array(difficult),
        regions=np.array(regions, np.float32).reshape(-1, 4),
        region_labels=np.full(len(regions), -1, np.int32),
        region_offsets=np.array([0, len(regions)]),
    )  # fmt: skip


def found(rows) -> list[ImageDetections]:
    """Detections (x1, y1, x2, y2, score, label) of the image."""
    rows = np.array(rows, float).reshape(-1, 6)
    return [ImageDetections(0, rows[:, :4], rows[:, 4], rows[:, 5].astype(int))]


CASES = {
    "correct": ((10, 10, 30, 30, 0.5, 0), "correct"),
    "half the box": ((10, 10, 30, 20, 0.5, 0), "correct"),  # IoU exactly 0.5
    "poor": ((10, 10, 30, 19, 0.5, 0), "poor box"),
    "just no poor box": ((10, 10, 30, 11.9, 0.5, 0), "background"),
    "wrong": ((10, 10, 30, 30, 0.5, 1), "wrong class"),
    "elsewhere": ((50, 50, 70, 70, 0.5, 0), "background"),
    "other class and poor": ((10, 10, 30, 19, 0.5, 1), "background"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_detection(case):
    row, kind = CASES[case]
    judged = oc.outcomes(an_index([TRUTH]), found([row]))
    assert [oc.KINDS[k] for k in judged.kinds] == [kind]
    assert judged.missed().tolist() == [kind != "correct"]
    assert judged.missed(0.6).tolist() == [True]


def test_the_better_score_takes_the_truth():
    rows = [(10, 10, 30, 29, 0.4, 0), (10, 10, 30, 25, 0.9, 0)]
    judged = oc.outcomes(an_index([TRUTH]), found(rows))
    assert judged.scores.tolist() == [0.9, 0.4]
    assert judged.kinds.tolist() == [oc.CORRECT, oc.DUPLICATE]
    assert judged.found.tolist() == [0.9]


def test_difficult_truths_and_regions_do_not_count():
    index = an_index([TRUTH], difficult=[True], regions=[[50, 50, 90, 90]])
    rows = [(10, 10, 30, 30, 0.9, 0), (60, 60, 70, 70, 0.8, 1), (40, 60, 45, 70, 0.7, 1)]
    judged = oc.outcomes(index, found(rows))
    assert judged.kinds.tolist() == [oc.IGNORED, oc.IGNORED, oc.BACKGROUND]
    assert not judged.missed().any()


def test_counts_and_confusion_by_hand():
    index = an_index([TRUTH, (50, 50, 70, 70, 0), (80, 80, 95, 95, 1)])
    rows = [(10, 10, 30, 30, 0.9, 0), (50, 50, 70, 70, 0.8, 1), (0, 80, 9, 95, 0.7, 1)]
    judged = oc.outcomes(index, found(rows))
    assert oc.confusion(judged, index, 0.5).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert oc.confusion(judged, index, 0.85).tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    counts = oc.kind_counts(judged, 2, 0.75)
    assert counts[0, oc.CORRECT] == 1 and counts[1, oc.WRONG] == 1 and counts.sum() == 2


def test_the_threshold_of_the_best_f1_by_hand():
    index = an_index([TRUTH, (50, 50, 70, 70, 0)])
    rows = [(10, 10, 30, 30, 0.9, 0), (50, 50, 70, 70, 0.6, 0), (0, 80, 9, 95, 0.3, 0)]
    curve = oc.curve(oc.outcomes(index, found(rows)), index, 0)
    assert curve.recall.tolist() == [0.5, 1, 1] and curve.precision[-1] == pytest.approx(2 / 3)
    assert (curve.threshold, curve.f1) == (0.6, 1.0)
    empty = oc.curve(oc.outcomes(index, []), index, 1)
    assert empty.truths == 0 and np.isnan(empty.threshold)


@pytest.mark.parametrize("seed", range(8))
def test_lower_scores_change_nothing_and_all_truths_are_counted_once(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (12, 2))
    truths = np.hstack([low, low + rng.uniform(5, 40, (12, 2)), rng.integers(0, 2, (12, 1))])
    near = truths[rng.integers(0, 12, 60), :4] + rng.normal(0, 4, (60, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    rows = np.hstack([near, rng.uniform(0, 1, (60, 1)), rng.integers(0, 2, (60, 1))])
    index = an_index(truths)
    judged = oc.outcomes(index, found(rows))
    some = oc.outcomes(index, found(rows[rows[:, 4] >= 0.4]))
    kept = judged.scores >= 0.4
    assert np.array_equal(judged.kinds[kept], some.kinds)
    assert np.array_equal(judged.missed(0.4), some.missed())
    assert len(set(judged.kinds.tolist())) >= 4
    matrix = oc.confusion(judged, index, 0.4)
    assert matrix[:-1].sum(1).tolist() == np.bincount(index.labels, minlength=2).tolist()
    assert matrix[:, :-1].sum() == kept.sum()
    hits = (some.kinds == oc.CORRECT).sum()
    assert hits + some.missed().sum() == len(truths) and np.trace(matrix[:2, :2]) == hits


def judged_one_by_one(index, one):
    """The rule as a loop over detections: (kinds, truths, found)."""
    found = np.full(len(index.labels), np.nan)
    order = np.argsort(-one.scores, kind="stable")
    kinds, truths = [], []
    for i in order:
        box, label = one.boxes[i], one.labels[i]
        overlap = np.array([iou(box, truth) for truth in index.boxes])
        same, hard = index.labels == label, index.difficult
        good, free = overlap >= 0.5, np.isnan(found)
        kind, truth = oc.BACKGROUND, -1
        for name, fits in (
            (oc.CORRECT, good & same & free & ~hard),
            (oc.IGNORED, good & same & hard),
            (oc.DUPLICATE, good & same),
            (oc.WRONG, good & ~same & ~hard),
            (oc.POOR, (overlap >= 0.1) & same & ~hard),
        ):
            if fits.any():
                kind, truth = name, int(np.where(fits, overlap, -1).argmax())
                break
        if kind == oc.CORRECT:
            found[truth] = one.scores[i]
        inside = [share(box, region) >= 0.5 for region in index.regions]
        kinds.append(oc.IGNORED if kind in (oc.BACKGROUND, oc.POOR) and any(inside) else kind)
        truths.append(truth)
    return kinds, truths, found


def common(a, b):
    return np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))


def iou(a, b):
    area = [np.prod(x[2:].astype(float) - x[:2]) for x in (a, b)]
    return common(a, b) / (sum(area) - common(a, b))


def share(box, region):
    return common(box, region) / np.prod(box[2:] - box[:2])


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (12, 2))
    truths = np.hstack([low, low + rng.uniform(5, 40, (12, 2)), rng.integers(0, 2, (12, 1))])
    near = truths[rng.integers(0, 12, 60), :4] + rng.normal(0, 4, (60, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    rows = np.hstack([near, rng.uniform(0, 1, (60, 1)), rng.integers(0, 2, (60, 1))])
    index = an_index(truths, difficult=rng.random(12) < 0.3, regions=[[0, 0, 50, 50]])
    judged = oc.outcomes(index, found(rows))
    kinds, meets, scores = judged_one_by_one(index, found(rows)[0])
    assert judged.kinds.tolist() == kinds and judged.truths.tolist() == meets
    np.testing.assert_array_equal(judged.found, scores)
    assert len(set(kinds)) >= 5
