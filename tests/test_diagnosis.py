"""Costs of errors and calibration: by hand, and against plain loops on drawn detections."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coco_evaluators import drawn
from test_details import iou
from test_metrics import BOX, FAR, detect, flagged, make_index

from m2det_jax.metrics import diagnosis
from m2det_jax.metrics.details import details, format_details
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.diagnosis import BINS, COSTS, calibration, error_costs
from m2det_jax.metrics.scores import coco_metrics, rank, without_ignored

HALF = [10.0, 10.0, 50.0, 20.0]  # IoU 1/3 with BOX
ONE_OF_EACH = [
    (BOX, 0.9, 0), ([11.0, 10.0, 50.0, 40.0], 0.8, 0), (FAR, 0.7, 0), (HALF, 0.6, 0),
    (HALF, 0.5, 1), ([160.0, 5.0, 190.0, 20.0], 0.4, 0),
]  # fmt: skip


def test_one_error_of_each_kind():
    index = make_index([[(BOX, 0), (FAR, 1)], [(FAR, 0)]])
    found = error_costs(index, [detect(0, *ONE_OF_EACH)])
    assert {kind: found[kind]["errors"] for kind in COSTS} == dict.fromkeys(COSTS, 1)


def test_what_a_background_error_costs_by_hand():
    """AP50 is 51 of 101 recalls at precision 1 and 50 at 2/3; without the false alarm it is 1."""
    index = make_index([[(BOX, 0), (FAR, 0)]])
    rows = [(BOX, 0.9, 0), ([160.0, 5.0, 190.0, 20.0], 0.8, 0), (FAR, 0.7, 0)]
    found = error_costs(index, [detect(0, *rows)])
    lost = 1 - (51 + 50 * 2 / 3) / 101
    assert found["background"] == {"errors": 1, "AP50_lost": pytest.approx(lost)}
    assert found["false_positives"] == pytest.approx(lost)
    assert found["false_negatives"] == found["missed"]["AP50_lost"] == 0


def test_without_detections_all_objects_are_missed():
    """Fewer objects to find would not raise AP, for nothing is found: TIDE's rule."""
    found = error_costs(make_index([[(BOX, 0), (FAR, 1)], []]), [])
    assert found["missed"] == {"errors": 2, "AP50_lost": 0}
    assert found["background"] == {"errors": 0, "AP50_lost": 0}


def without(detections, dropped):
    """Detections without some, given as {(image, place)}."""
    kept = []
    for one in detections:
        some = [k for k in range(len(one.scores)) if (one.image_id, k) not in dropped]
        kept.append(ImageDetections(one.image_id, one.boxes[some], one.scores[some],
                                    one.labels[some]))  # fmt: skip
    return kept


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_the_cost_of_the_background_is_what_ap_gains_without_it(seed):
    index, detections = drawn(seed, regions=0, per_image=6)
    if not any(len(one.scores) for one in detections) or not len(index.labels):
        return
    background = {
        (one.image_id, k)
        for one in detections
        for k, box in enumerate(one.boxes)
        if max((iou(box, t) for t in index.objects(one.image_id)[0]), default=0) < 0.1
    }
    found = error_costs(index, detections)
    base = coco_metrics(index, detections)["AP50"]
    gained = coco_metrics(index, without(detections, background))["AP50"] - base
    assert found["background"]["errors"] == len(background)
    assert found["background"]["AP50_lost"] == pytest.approx(gained, abs=1e-9)
    assert all(found[kind]["AP50_lost"] >= -1e-9 for kind in COSTS)
    assert found["false_positives"] >= found["background"]["AP50_lost"] - 1e-9


def test_of_very_many_detections_every_nth_image_is_taken(monkeypatch):
    index = make_index([[(BOX, 0)], [(FAR, 0)], [(BOX, 0)], [(FAR, 0)]])
    found = [detect(3, (BOX, 0.9, 0)), detect(2, (BOX, 0.9, 0)), detect(0, (FAR, 0.8, 0))]
    whole = error_costs(index, found)
    assert whole["images"] == 4 and whole["background"]["errors"] == 2
    monkeypatch.setattr(diagnosis, "MOST_DETECTIONS", 2)
    half = error_costs(index, found)
    assert half == error_costs(index.subset([0, 2]), [detect(1, (BOX, 0.9, 0)), found[2]])
    assert half["images"] == 2 and half["background"]["errors"] == 1


def test_difficult_objects_cost_nothing():
    index = make_index([[(BOX, 0), (FAR, 0)]])
    rows = [(BOX, 0.9, 0), (FAR, 0.95, 0), ([60.0, 60.0, 70.0, 70.0], 0.99, 0)]
    marked = flagged(index, difficult=[1], regions=[([50, 50, 80, 75], 0)])
    found = error_costs(marked, [detect(0, *rows)])
    assert all(found[kind] == {"errors": 0, "AP50_lost": 0} for kind in COSTS)
    assert error_costs(index, [detect(0, *rows)])["background"]["errors"] == 1
    marked = flagged(index, difficult=[0, 1])
    assert math.isnan(error_costs(marked, [detect(0, *rows)])["missed"]["AP50_lost"])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_what_is_ignored_can_be_left_out(seed):
    index, detections = drawn(seed)
    index = dataclasses.replace(index, difficult=np.arange(len(index.labels)) % 3 == 0)
    kept, counted = without_ignored(index, detections)
    assert not kept.difficult.any() and len(kept.regions) == 0
    assert len(kept.labels) == (~index.difficult).sum()
    expected, found = rank(index, detections), rank(kept, counted)
    for name in ("scores", "labels", "hits", "boxes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_calibration_is_that_of_a_plain_loop(seed, ties):
    ranked = rank(*drawn(seed, ties=ties))
    found = calibration(ranked)
    assert len(found["bins"]) == BINS
    gaps, total = [], len(ranked.scores)
    for k, one in enumerate(found["bins"]):
        inside = [
            (s, hit)
            for s, hit in zip(ranked.scores.tolist(), ranked.hits.tolist(), strict=True)
            if min(int(s * BINS), BINS - 1) == k
        ]
        assert one["detections"] == len(inside)
        assert (one["from"], one["to"]) == pytest.approx((k / BINS, (k + 1) / BINS))
        if not inside:
            assert math.isnan(one["precision"])
            continue
        mean, right = (sum(column) / len(inside) for column in zip(*inside, strict=True))
        assert (one["score"], one["precision"]) == pytest.approx((mean, right))
        gaps.append((abs(mean - right), len(inside)))
    if total:
        assert found["ECE"] == pytest.approx(sum(gap * n for gap, n in gaps) / total)
        assert found["MCE"] == pytest.approx(max(gap for gap, _ in gaps))
    else:
        assert math.isnan(found["ECE"]) and math.isnan(found["MCE"])


@pytest.mark.parametrize("hard", [False, True])
def test_ap_by_size_averages_to_the_whole(hard):
    index, detections = drawn(5, images=30)
    if hard:
        index = dataclasses.replace(index, difficult=np.arange(len(index.labels)) % 4 == 0)
    whole, parts = coco_metrics(index, detections), details(index, detections)["class_details"]
    for size in ("small", "medium", "large"):
        values = [one[f"AP_{size}"] for one in parts.values()]
        assert np.nanmean(values) == pytest.approx(whole[f"AP_{size}"], abs=1e-9)
        assert np.nanmax(values) > np.nanmin(values)


def test_the_text_says_what_costs_the_most_first():
    index = make_index([[(BOX, 0), (FAR, 0)]])
    rows = [(BOX, 0.9, 0), ([160.0, 5.0, 190.0, 20.0], 0.8, 0), (FAR, 0.7, 0)]
    found = [detect(0, *rows)]
    table = format_details(coco_metrics(index, found), details(index, found))
    assert "AP50 lost by errors: background 0.165 (1), wrong class 0.000 (0)" in table
    assert "calibration of scores: ECE 0.333, MCE 0.350" in table
