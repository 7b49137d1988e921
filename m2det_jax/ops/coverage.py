"""Anchor coverage: how much the best anchor of each box overlaps it, for data sets of any size.

K boxes, A anchors, G shapes of a cell. Everything is numpy: people read these figures, and no
network trains with them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64, Num

from m2det_jax.ops.anchors import Size

_BOXES_AT_A_TIME = 16384


def best_anchors(
    boxes: Num[np.ndarray, "K 4"],
    anchors: Float[np.ndarray, "A 4"],
    feature_maps: Sequence[Size] | np.ndarray,
) -> tuple[Float[np.ndarray, "K"], Int64[np.ndarray, "K"]]:
    """Finds the highest IoU of every box with any anchor, and that anchor.

    Among the anchors of one scale and shape, the one whose centre is nearest along both axes
    overlaps a box most: the overlap along an axis falls with the distance of the centres. So a box
    is compared with a few dozen anchors instead of all, and the result is the same.

    Args:
        boxes: xyxy, in pixels of the same image as the anchors.
        anchors: as `ssd_anchors` and `retinanet_anchors` make them for feature_maps.
        feature_maps: (height, width) of every scale in cells, in the order of the anchors.

    Returns:
        IoU float32 [K], in [0, 1], and positions in anchors int64 [K].

    Raises:
        ValueError: if the cells of these feature maps cannot all have the same number of anchors.
    """
    cells = sum(int(rows) * int(columns) for rows, columns in feature_maps)
    per_cell, rest = divmod(len(anchors), max(cells, 1))
    if rest or not per_cell:
        raise ValueError(f"anchors: {len(anchors)} cannot be dealt evenly to {cells} cells")
    overlap, found = np.zeros(len(boxes), np.float32), np.zeros(len(boxes), np.int64)
    for start in range(0, len(boxes), _BOXES_AT_A_TIME):
        rows = slice(start, start + _BOXES_AT_A_TIME)
        some = np.asarray(boxes[rows], np.float32)
        candidates = _nearest(some, anchors, feature_maps, per_cell)  # [k, G * scales]
        overlaps = aligned_iou(some[:, None, :], anchors[candidates])
        best = overlaps.argmax(axis=1)[:, None]
        overlap[rows] = np.take_along_axis(overlaps, best, axis=1)[:, 0]
        found[rows] = np.take_along_axis(candidates, best, axis=1)[:, 0]
    return overlap, found


def aligned_iou(
    boxes_a: Num[np.ndarray, "... 4"], boxes_b: Num[np.ndarray, "... 4"]
) -> Float[np.ndarray, "..."]:
    """Returns the intersection over union of boxes at the same place of both arrays, broadcast.

    It is 0 for a pair with a box that has no area.
    """
    low = np.maximum(boxes_a[..., :2], boxes_b[..., :2])
    high = np.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    intersection = np.maximum(high - low, 0).prod(axis=-1)
    areas = [np.maximum(b[..., 2:] - b[..., :2], 0).prod(axis=-1) for b in (boxes_a, boxes_b)]
    union = areas[0] + areas[1] - intersection
    return np.where(intersection > 0, intersection / np.where(union > 0, union, 1), 0)


def _nearest(
    boxes: np.ndarray, anchors: np.ndarray, feature_maps: Sequence[Size] | np.ndarray, per_cell: int
) -> np.ndarray:
    """Returns the anchors of the cell nearest to each box, of all scales: [k, G * scales]."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    candidates, start = [], 0
    for rows, columns in feature_maps:
        end = start + rows * columns * per_cell
        grid = anchors[start:end].reshape(rows, columns, per_cell, 4)
        # All shapes of a cell have the same centre: the first shape gives it.
        x = (grid[0, :, 0, 0] + grid[0, :, 0, 2]) / 2
        y = (grid[:, 0, 0, 1] + grid[:, 0, 0, 3]) / 2
        column = np.searchsorted((x[:-1] + x[1:]) / 2, centers[:, 0])
        row = np.searchsorted((y[:-1] + y[1:]) / 2, centers[:, 1])
        first = start + (row * columns + column) * per_cell
        candidates.append(first[:, None] + np.arange(per_cell))
        start = end
    return np.concatenate(candidates, axis=1)
