"""Details of an evaluation against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco_evaluators import CLASSES, drawn
from test_metrics import BOX, FAR, detect, flagged, make_index

from m2det_jax.metrics.details import (
    best_f1,
    box_errors,
    crowding,
    details,
    eleven_point_precision,
    format_details,
)
from m2det_jax.metrics.scores import coco_metrics


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union


def naive_matches(index, detections):
    """{class: [(score, object or None, box)]}, best score first, by PASCAL's procedure."""
    every = [
        (float(s), d.image_id, [float(x) for x in b], int(k))
        for d in detections
        for b, s, k in zip(d.boxes, d.scores, d.labels, strict=True)
    ]
    taken, result = set(), {k: [] for k in range(len(index.class_names))}
    for score, image, box, label in sorted(every, key=lambda item: -item[0]):
        best, at = 0.0, None
        for k in range(index.offsets[image], index.offsets[image + 1]):
            overlap = iou(box, index.boxes[k].tolist()) if index.labels[k] == label else 0.0
            if overlap > best:
                best, at = overlap, k
        at = at if best >= 0.5 and at not in taken else None
        taken.add(at)
        result[label].append((score, at, box))
    return result


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_details_are_those_of_a_plain_loop(seed, ties):
    index, detections = drawn(seed, ties=ties, regions=0)
    figures, matches = details(index, detections), naive_matches(index, detections)
    used, weighted = {}, []
    for label, name in enumerate(CLASSES):
        mine, total = matches[label], int((index.labels == label).sum())
        one = figures["class_details"][name]
        assert one["objects"] == total
        if not total or not mine:
            assert math.isnan(one["threshold"])
            continue
        weighted.append((one["VOC_AP50"], total))
        best = (-1.0, 0.0, 0.0, 0.0)
        for threshold in sorted({s for s, _, _ in mine}, reverse=True):
            chosen = [at for s, at, _ in mine if s >= threshold]
            hits = sum(at is not None for at in chosen)
            p, r = hits / len(chosen), hits / total
            f1 = 2 * p * r / (p + r) if hits else 0.0
            if f1 > best[0] + 1e-12:
                best = (f1, threshold, p, r)
        got = [one[key] for key in ("best_F1", "threshold", "precision", "recall")]
        assert got == pytest.approx(list(best))
        used |= {at: box for s, at, box in mine if at is not None and s >= best[1]}
    if not weighted:
        return
    total = sum(n for _, n in weighted)
    if total == len(index.labels):
        expected = sum(ap * n for ap, n in weighted) / total
        assert figures["weighted_AP50"] == pytest.approx(expected)
    for group, low, high in (("small", 0, 1024), ("medium", 1024, 9216), ("large", 9216, 1e9)):
        rows = [k for k, area in enumerate(index.areas) if low <= area < high]
        share = sum(k in used for k in rows) / len(rows) if rows else math.nan
        expected = {"objects": len(rows), "recall": pytest.approx(share, nan_ok=True)}
        assert figures["recall_by_size"][group] == expected
    assert figures["box_errors"]["matched"] == len(used)
    position = size = 0.0
    for k, box in used.items():
        x, y, x2, y2 = index.boxes[k].tolist()
        dx, dy = (box[0] + box[2] - x - x2) / 2, (box[1] + box[3] - y - y2) / 2
        position += math.sqrt(dx**2 + dy**2) / math.sqrt((x2 - x) * (y2 - y))
        size += abs((box[2] - box[0]) / (x2 - x) - 1) / 2
        size += abs((box[3] - box[1]) / (y2 - y) - 1) / 2
    if used:
        errors = figures["box_errors"]
        assert errors["position"] == pytest.approx(position / len(used), rel=1e-6)
        assert errors["size"] == pytest.approx(size / len(used), rel=1e-6)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5))
def test_eleven_points_are_those_of_a_plain_loop(hits, missed):
    total = sum(hits) + missed
    if not total:
        assert math.isnan(eleven_point_precision(np.array(hits, bool), 0))
        return
    points = [(sum(hits[:n]), n) for n in range(1, len(hits) + 1)]
    expected = sum(
        max((found / n for found, n in points if found * 10 >= k * total), default=0)
        for k in range(11)
    )
    assert eleven_point_precision(np.array(hits, bool), total) == pytest.approx(expected / 11)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_crowding_is_that_of_a_plain_loop(seed):
    index, detections = drawn(seed)
    image_of = np.repeat(np.arange(index.num_images), index.counts)
    expected = [
        max(
            (iou(a.tolist(), b.tolist())
             for j, b in enumerate(index.boxes) if j != i and image_of[i] == image_of[j]),
            default=0.0,
        )
        for i, a in enumerate(index.boxes)
    ]  # fmt: skip
    np.testing.assert_allclose(crowding(index), expected, rtol=1e-6, atol=1e-9)
    groups = details(index, detections)["recall_by_crowding"]
    assert [groups[name]["objects"] for name in ("apart", "touching", "overlapping")] == [
        sum(value == 0 for value in expected),
        sum(0 < value <= 0.3 for value in expected),
        sum(value > 0.3 for value in expected),
    ]


def test_the_weighted_mean_by_hand():
    index = make_index([[(BOX, 0), (FAR, 0)], [(BOX, 1), (FAR, 0)]])
    figures = details(index, [detect(0, (BOX, 0.9, 0), (FAR, 0.8, 0)), detect(1, (FAR, 0.7, 0))])
    assert figures["weighted_AP50"] == pytest.approx(3 / 4)
    assert figures["VOC07_AP50"] == pytest.approx(1 / 2)


def test_equal_scores_share_one_threshold():
    found = best_f1(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]), 2)
    assert found == pytest.approx(
        {"best_F1": 0.8, "threshold": 0.5, "precision": 2 / 3, "recall": 1.0}
    )


def test_errors_of_boxes_by_hand():
    moved = box_errors(np.array([[3.0, 4.0, 23.0, 14.0]]), np.array([[0.0, 0.0, 10.0, 10.0]]))
    assert moved == pytest.approx({"matched": 1, "position": math.hypot(8, 4) / 10, "size": 0.5})


def test_difficult_objects_and_regions_do_not_count():
    index = make_index([[(BOX, 0), (FAR, 0)]])
    found = [detect(0, (FAR, 0.95, 0), (BOX, 0.9, 0), ([60, 60, 70, 70], 0.99, 0))]
    marked = flagged(index, difficult=[1], regions=[([50, 50, 80, 75], 0)])
    one = details(marked, found)["class_details"]["cat"]
    expected = {"objects": 1, "threshold": pytest.approx(0.9), "precision": 1.0, "recall": 1.0}
    assert {key: one[key] for key in expected} == expected
    assert details(index, found)["class_details"]["cat"]["precision"] == pytest.approx(2 / 3)


def test_without_anything_figures_are_nan_and_the_table_says_so():
    index = make_index([[], []])
    figures = details(index, [])
    assert math.isnan(figures["VOC07_AP50"]) and math.isnan(figures["weighted_AP50"])
    assert format_details(coco_metrics(index, []), figures).count("n/a") == 2 * 6 + 6 + 2 + 6 + 2


def test_the_table_has_a_line_a_class_and_the_groups():
    index = make_index([[(BOX, 0), (FAR, 1)]])
    found = [detect(0, (BOX, 0.875, 0))]
    table = format_details(coco_metrics(index, found), details(index, found))
    lines = [line.split() for line in table.splitlines()]
    assert lines[1] == ["cat", "1", "1.000", "1.000", "1.000", "0.875", "1.000", "1.000"]
    assert lines[2] == ["dog", "1", "0.000", "0.000", "0.000", "n/a", "n/a", "0.000"]
    assert "recall by size: small n/a of 0, medium 0.500 of 2, large n/a of 0" in table
    assert "recall by crowding: apart 0.500 of 2" in table
