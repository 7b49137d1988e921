"""Random crops, checked one by one against a plain loop."""

import numpy as np
import pytest

from m2det_jax.data.augment import steps
from m2det_jax.data.augment.steps import CROP_RULES, crop_window

SIZE = (300, 200)
BOXES = np.array([[10, 20, 120, 160], [200, 50, 240, 80], [280, 180, 300, 200]], np.float32)


def iou(box, window):
    width = min(box[2], window[2]) - max(box[0], window[0])
    height = min(box[3], window[3]) - max(box[1], window[1])
    common = max(width, 0) * max(height, 0)
    return common / (area(box) + area(window) - common)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def shows_a_center(window, boxes=BOXES):
    centers = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
    left, top, right, bottom = window
    return any(left <= x < right and top <= y < bottom for x, y in centers)


@pytest.mark.parametrize("rule", CROP_RULES)
def test_crops_follow_their_rule(monkeypatch, rule):
    monkeypatch.setattr(steps, "CROP_RULES", (rule,))
    rng = np.random.default_rng(0)
    outer = (-30.0, -10.0, 330.0, 220.0)
    windows = [crop_window(SIZE, outer, BOXES, 0.3, rng) for _ in range(60)]
    cut = [window for window in windows if window != outer]
    # 0.9 can only be met by crops that are nearly one of the boxes, which 50 trials may not find.
    assert len(cut) >= (20 if rule < 0.7 else 1 if rule < 0.9 else 0)
    for window in cut:
        assert max(iou(box, window) for box in BOXES) >= rule - 1e-9
        assert shows_a_center(window)
        width, height = (window[2] - window[0]) / 360, (window[3] - window[1]) / 230
        assert 0.3**2 - 1e-9 <= width * height <= 1 and max(width, height) <= 1 + 1e-9
        assert 0.5 - 1e-9 <= width / height <= 2 + 1e-9
        assert window[0] >= outer[0] and window[1] >= outer[1]
        assert window[2] <= outer[2] + 1e-9 and window[3] <= outer[3] + 1e-9


def test_crops_vary():
    rng = np.random.default_rng(0)
    windows = np.array([crop_window(SIZE, (0, 0, *SIZE), BOXES, 0.3, rng) for _ in range(100)])
    assert len(np.unique(windows, axis=0)) > 95
    sides = windows[:, 2:] - windows[:, :2]
    assert sides[:, 0].min() < 130 and sides[:, 0].max() > 260


def test_every_crop_of_tiny_boxes_shows_one():
    rng = np.random.default_rng(0)
    boxes = np.array([[297, 197, 299, 199]], np.float32)
    outer = (-600.0, -100.0, 600.0, 700.0)
    for _ in range(50):
        window = crop_window(SIZE, outer, boxes, 0.3, rng)
        assert shows_a_center(window, boxes)


def test_without_boxes_the_image_is_seen():
    rng = np.random.default_rng(0)
    outer = (-800.0, -500.0, 400.0, 300.0)
    for _ in range(100):
        window = crop_window(SIZE, outer, np.zeros((0, 4), np.float32), 0.3, rng)
        shown = [max(window[0], 0), max(window[1], 0), min(window[2], 300), min(window[3], 200)]
        assert shown[2] > shown[0] and shown[3] > shown[1]
        assert window == outer or area(shown) >= min(area(window) / 4, 300 * 200 / 2) - 1e-6


def test_full_scale_leaves_the_window():
    rng = np.random.default_rng(0)
    assert np.allclose(crop_window(SIZE, (0, 0, *SIZE), BOXES, 1.0, rng), (0, 0, *SIZE))
