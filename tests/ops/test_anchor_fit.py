"""Fitted anchors: better where the data differ from the defaults, and the same every time."""

import numpy as np
import pytest

from m2det_jax import ops
from m2det_jax.ops.anchor_fit import AnchorShapes, first_guess, fit_anchors, kmeans_shapes
from m2det_jax.ops.coverage import best_anchors

MAPS = ((20, 30), (10, 15), (5, 8))
SIZE = (160, 240)
START = AnchorShapes((40.0, 80.0, 120.0, 160.0), (2.0, 3.0))


def text_lines(seed: int, count: int = 300) -> np.ndarray:
    """Boxes five times as wide as high, 10 to 30 pixels high."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(10, 30, count)
    width = height * rng.uniform(4, 6, count)
    low = rng.uniform(0, 1, (count, 2)) * (np.array([240, 160]) - np.stack([width, height], 1))
    return np.concatenate([low, low + np.stack([width, height], 1)], 1).astype(np.float32)


def build(shapes: AnchorShapes) -> np.ndarray:
    return ops.ssd_anchors(MAPS, SIZE, sizes=shapes.sizes, aspect_ratios=shapes.aspect_ratios)


def coverage(boxes, shapes: AnchorShapes) -> float:
    return float((best_anchors(boxes, build(shapes), MAPS)[0] >= 0.5).mean())


def fit(boxes, start=START, seed=0):
    return fit_anchors(
        boxes, start, build=build, feature_maps=MAPS, positive_threshold=0.5, seed=seed
    )


def test_long_boxes_get_long_anchors():
    boxes = text_lines(0)
    fitted = fit(boxes)
    assert coverage(boxes, START) < 0.8
    assert coverage(boxes, fitted) > 0.95
    assert coverage(text_lines(1), fitted) > 0.9  # other boxes of the same kind
    assert max(fitted.aspect_ratios) > 4
    assert len(fitted.sizes) == 4 and len(fitted.aspect_ratios) == 2
    assert np.all(np.diff(fitted.sizes) > 0)


def test_the_seed_decides():
    boxes = text_lines(0)
    assert fit(boxes) == fit(boxes) != fit(boxes, seed=1)


def test_never_worse_on_the_boxes_it_looked_at():
    boxes = text_lines(3)
    start = fit(boxes)
    assert coverage(boxes, fit(boxes, start, seed=5)) >= coverage(boxes, start)


def test_equal_boxes_and_no_boxes():
    box = np.array([[10, 10, 50, 40]] * 5 + [[3, 3, 3, 9]], np.float32)
    fitted = fit(box)
    assert coverage(box[:5], fitted) == 1 and np.all(np.diff(fitted.sizes) > 0)
    with pytest.raises(ValueError, match="no box with an area"):
        fit(box[5:])


def test_kmeans_finds_separate_kinds():
    rng = np.random.default_rng(0)
    kinds = np.array([[10, 10], [60, 20], [20, 90]])
    shapes = np.concatenate([kind * rng.uniform(0.95, 1.05, (50, 2)) for kind in kinds])
    found = kmeans_shapes(shapes, 3, np.random.default_rng(1))
    found = found[np.argsort(found.prod(axis=1))]
    np.testing.assert_allclose(found, kinds, rtol=0.03)
    guess = first_guess(shapes, AnchorShapes((1.0, 2.0, 3.0), (2.0, 3.0)), rng)
    np.testing.assert_allclose(guess.sizes, np.sqrt([100, 1200, 1800]), rtol=0.05)
    np.testing.assert_allclose(guess.aspect_ratios, [3, 4.5], rtol=0.05)
