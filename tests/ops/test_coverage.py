"""Anchor coverage against a comparison of all pairs."""

import numpy as np
import pytest

from m2det_jax import ops
from m2det_jax.ops.coverage import aligned_iou, best_anchors

MAPS = ((8, 12), (4, 6), (2, 4))
SIZE = (64, 96)


def random_boxes(seed: int, count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.uniform((-5, -5), (90, 60), (count, 2))
    shape = np.exp(rng.uniform(np.log(2), np.log(80), (count, 2)))
    return np.concatenate([low, low + shape], axis=1).astype(np.float32)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_comparison_of_all_pairs(seed, clip):
    anchors = ops.ssd_anchors(MAPS, SIZE, sizes=(9, 20, 50, 110), aspect_ratios=(2, 3), clip=clip)
    boxes = random_boxes(seed)
    overlap, found = best_anchors(boxes, anchors, MAPS)
    pairs = np.asarray(ops.iou(boxes, anchors))
    np.testing.assert_allclose(overlap, pairs.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(pairs[np.arange(len(boxes)), found], overlap, atol=1e-6)


def test_retinanet_anchors_and_no_boxes():
    anchors = ops.retinanet_anchors(MAPS, SIZE, sizes=(8, 16, 32))
    boxes = random_boxes(2)
    overlap, _ = best_anchors(boxes, anchors, MAPS)
    np.testing.assert_allclose(overlap, np.asarray(ops.iou(boxes, anchors)).max(1), atol=1e-6)
    assert [len(part) for part in best_anchors(boxes[:0], anchors, MAPS)] == [0, 0]


def test_anchors_of_other_maps_are_refused():
    anchors = ops.retinanet_anchors(MAPS, SIZE, sizes=(8, 16, 32))
    with pytest.raises(ValueError, match="1152 cannot be dealt evenly to 127 cells"):
        best_anchors(random_boxes(0), anchors, (*MAPS[:2], (1, 7)))


def test_aligned_iou_by_hand():
    a = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 5], [0, 0, 4, 1]], np.float32)
    b = np.array([[1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 9, 9], [0, 0, 4, 4]], np.float32)
    np.testing.assert_allclose(aligned_iou(a, b), [1 / 3, 0, 0, 1 / 4])
