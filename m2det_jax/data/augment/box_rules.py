"""Which boxes stay in an augmented picture, and where: all rules, in this one place.

- Centre rule, for pictures that only expand, crop, scale_jitter, flip and paste have been at: a box
  stays if its centre lies in the window that is shown.
- Share rule, for pictures that affine or mosaic have been at: a box stays if at least `min_visible`
  of its area is shown (config.augment.min_visible).
- A box that stays is cut to what is shown of it. Nothing else ever drops or changes a box.
- Under an affine map a box becomes a parallelogram. It is cut to the picture first, and the box of
  what is left is taken: it holds everything that is seen of the object, and is never larger than
  the box of the four corners.
- paste adds boxes of other images, whole, on top. It covers at most `paste_max_covered` of any box
  below, all pasted boxes together; boxes that are covered so far stay as they are.
- mixup shows two pictures through each other, with the boxes of both; all count alike in the loss.

Boxes are xyxy with exclusive x2, y2; windows (left, top, right, bottom) in the same pixels. M, n, K
boxes.
"""

from typing import TypeAlias

import numpy as np

Window: TypeAlias = tuple[float, float, float, float]


def stays(boxes: np.ndarray, window: Window, min_visible: float | None = None) -> np.ndarray:
    """Returns bool [M]: by the centre rule, or by the share rule where min_visible is given."""
    if min_visible is None:
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        return ((centers >= window[:2]) & (centers < window[2:])).all(axis=1)
    shown = overlaps(boxes, np.array([window]))[:, 0]
    return shows_enough(shown, areas(boxes), min_visible)


def shows_enough(shown: np.ndarray, whole: np.ndarray, min_visible: float) -> np.ndarray:
    """The share rule on areas [M]; a sliver of rounding is allowed for. Returns bool [M]."""
    return (shown > 0) & (shown >= (min_visible - 1e-9) * whole)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas [M] of boxes [M, 4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the areas [M, K] that boxes [M, 4] have in common with others [K, 4]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = np.maximum(high - low, 0)  # [M, K, xy]
    return sides[..., 0] * sides[..., 1]


def cut(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Cuts boxes [M, 4] to a window."""
    return np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the corners [M, 4, 2] of boxes [M, 4], going round."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def boxes_around(corners: np.ndarray) -> np.ndarray:
    """Returns the smallest boxes [M, 4] around corners [M, n, 2]."""
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def cut_polygons(polygons: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Cuts convex polygons [M, n, 2] to a window.

    Returns:
        (boxes [M, 4] around what is left, areas [M] of it); nothing left: zeros.
    """
    boxes, shown = boxes_around(polygons), _polygon_areas(polygons)
    outside = (boxes[:, :2] < window[:2]).any(axis=1) | (boxes[:, 2:] > window[2:]).any(axis=1)
    for i in np.flatnonzero(outside):
        polygon = _cut_polygon(polygons[i].tolist(), window)
        left = np.array(polygon or [[0.0, 0.0]])[None]  # [1, n, 2]
        boxes[i], shown[i] = boxes_around(left)[0], _polygon_areas(left)[0]
    return boxes, shown


def _polygon_areas(polygons: np.ndarray) -> np.ndarray:
    """Areas [M] of polygons [M, n, 2], by the shoelace formula."""
    following = np.roll(polygons, -1, axis=1)
    cross = polygons[..., 0] * following[..., 1] - polygons[..., 1] * following[..., 0]
    return np.abs(cross.sum(axis=1)) / 2


def _cut_polygon(polygon: list[list[float]], window: Window) -> list[list[float]]:
    """Cuts a convex polygon at each side of a window in turn (Sutherland and Hodgman)."""
    for axis, limit, sign in ((0, 0, 1), (1, 1, 1), (0, 2, -1), (1, 3, -1)):
        edge, kept = window[limit], []
        for start, end in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            before, after = sign * (start[axis] - edge), sign * (end[axis] - edge)
            if before >= 0:
                kept.append(start)
            if before * after < 0:
                t = before / (before - after)
                point = [start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])]
                point[axis] = edge
                kept.append(point)
        polygon = kept
    return polygon
