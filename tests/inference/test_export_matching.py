"""Matching of detections by two programs: partners, and reasons for boxes without one."""

import dataclasses

import numpy as np
import pytest

from m2det_jax.detector.detector import Suppression
from m2det_jax.export.matching import Candidates, Found, match

HARD = Suppression(
    nms="hard", score_threshold=0.1, iou_threshold=0.5, pre_nms_top_k=100, soft_iou_threshold=0.3,
    soft_sigma=0.5, soft_score_floor=0.1, soft_candidates=100, max_per_class=0, max_detections=10,
    class_agnostic=False,
)  # fmt: skip
BOXES = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 20], [0, 30, 10, 40]], np.float32)


def found(*rows) -> Found:
    """Detections of (position in BOXES, score, label)."""
    which, scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    return Found(BOXES[which].astype(float), scores.astype(float), labels)


def candidates(*scores) -> Candidates:
    """The boxes, with scores of class 0; class 1 has less."""
    scores = np.array(scores)
    return Candidates(BOXES, np.stack([scores, scores * 0.01], axis=1))


def test_equal_lists_are_partners():
    one = found((0, 0.9, 0), (1, 0.8, 0))
    other = found((1, 0.8004, 0), (0, 0.9, 0))
    other.boxes[1] += 0.05
    result = match(one, other, candidates(0.9, 0.8, 0, 0), HARD)
    assert (result.pairs, result.reasons) == (2, [])
    assert result.box == pytest.approx(0.05) and result.score == pytest.approx(4e-4)


def test_nothing_is_found():
    none = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert match(none, none, candidates(0, 0, 0, 0), HARD) == (0, 0, 0, [])


@pytest.mark.parametrize("change", ["box", "score", "label", "gone"])
def test_a_real_difference_has_no_reason(change):
    one, other = found((0, 0.9, 0), (1, 0.8, 0)), found((0, 0.9, 0), (1, 0.8, 0))
    if change == "box":
        other.boxes[1] += 0.2
    if change == "score":
        other.scores[1] += 0.002
    if change == "label":
        other.labels[1] = 1
    if change == "gone":
        other = found((0, 0.9, 0))
    result = match(one, other, candidates(0.9, 0.8, 0, 0), HARD)
    assert result.pairs == 1 and set(result.reasons) == {""}
    assert len(result.reasons) == (1 if change == "gone" else 2)


@pytest.mark.parametrize(
    ("scores", "suppression", "reason"),
    [
        ((0.9, 0.10005, 0, 0), HARD, "score at the threshold"),
        ((0.9, 0.5, 0.50005, 0), dataclasses.replace(HARD, pre_nms_top_k=2),
         "score not above that of the last box before suppression"),
        ((0.9, 0.8, 0, 0), dataclasses.replace(HARD, max_detections=2), ""),
        ((0.9, 0.89995, 0, 0), dataclasses.replace(HARD, max_detections=1),
         "score not above that of the last detection"),
        ((0.9, 0.89995, 0, 0), dataclasses.replace(HARD, max_per_class=1),
         "score not above that of the last detection"),
    ],
)  # fmt: skip
def test_a_box_at_a_limit_has_a_reason(scores, suppression, reason):
    one, other = found((0, scores[0], 0), (1, scores[1], 0)), found((0, scores[0], 0))
    assert match(one, other, candidates(*scores), suppression).reasons == [reason]
    assert match(other, one, candidates(*scores), suppression).reasons == [reason]


def test_an_overlap_at_the_threshold_and_what_follows():
    # Box 2 overlaps box 0 by exactly a half.
    one, other = found((0, 0.9, 0)), found((0, 0.9, 0), (2, 0.6, 0))
    result = match(one, other, candidates(0.9, 0, 0.6, 0), HARD)
    assert result.reasons == ["overlap at the threshold"]
    other_class = found((0, 0.9, 0), (2, 0.006, 1))
    assert match(one, other_class, candidates(0.9, 0, 0.6, 0), HARD).reasons == [""]
    # Of two that overlap with the same score either may win.
    near = dataclasses.replace(HARD, iou_threshold=0.4)
    one, other = found((0, 0.9, 0)), found((2, 0.90005, 0))
    result = match(one, other, candidates(0.9, 0, 0.90005, 0), near)
    assert result.reasons == ["same score as a box that it overlaps"] * 2


def test_a_list_that_is_full_takes_no_more():
    one, other = found((0, 0.9, 0), (1, 0.8, 0)), found((0, 0.9, 0), (3, 0.10005, 0))
    full = dataclasses.replace(HARD, max_detections=2)
    reasons = match(one, other, candidates(0.9, 0.8, 0, 0.10005), full).reasons
    assert reasons == ["", "score at the threshold"]  # 0.8 is higher than the last one


def test_soft_scores_are_lower_than_those_of_the_network():
    soft = dataclasses.replace(HARD, nms="soft_linear")
    one, other = found((0, 0.9, 0), (2, 0.45, 0)), found((0, 0.9, 0), (2, 0.6, 0))
    assert match(one, other, candidates(0.9, 0, 0.6, 0), soft).reasons == ["", ""]
    at_limit = dataclasses.replace(soft, soft_iou_threshold=0.5)
    reasons = match(one, other, candidates(0.9, 0, 0.6, 0), at_limit).reasons
    assert reasons == ["overlap at the threshold"] * 2
    assert match(one, other, candidates(0.9, 0, 0.4, 0), at_limit).reasons == ["", ""]
