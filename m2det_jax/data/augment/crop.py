"""SSD's random crop: a window that is sure to show something.

Windows are (left, top, right, bottom) in pixels of the image, T trials, M boxes.
"""

import numpy as np

# One rule is drawn: some box must overlap the crop by at least this IoU (0: any overlap will do).
CROP_RULES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
# Bounds of a crop's aspect relative to that of the image it is cut from.
_ASPECT = (0.5, 2.0)
_TRIALS = 50


def crop_window(
    size: tuple[int, int],
    window: tuple[float, float, float, float],
    boxes: np.ndarray,
    min_scale: float,
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Draws a crop of a window (arXiv 1512.02325, section 2.2).

    A crop has sides of min_scale to 1 of the window's, shows the centre of at least one box, and
    overlaps one by the IoU of its rule; it shows some of the image where there are no boxes. Up to
    50 crops are tried a rule; a rule that finds none hands over to another one, and where none
    does the window itself is returned.

    Args:
        size: (width, height) of the image, which lies at 0, 0.
        window: what is shown without a crop.
        boxes: [M, 4], pixels of the image.
    """
    for rule in rng.permutation(CROP_RULES):
        crops = _draw_crops(window, min_scale, rng)
        fits = _shows(crops, size) if not len(boxes) else _fits(crops, boxes, rule)
        if fits.any():
            return tuple(crops[np.argmax(fits)].tolist())
    return window


def _draw_crops(
    window: tuple[float, float, float, float], min_scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws _TRIALS windows inside a window: [T, 4]."""
    corner, far = np.array(window[:2]), np.array(window[2:])
    draws = rng.random((_TRIALS, 4))
    scale = min_scale + (1 - min_scale) * draws[:, 0]
    # Both sides, scale * sqrt(aspect) and scale / sqrt(aspect), stay within the window.
    low, high = np.maximum(_ASPECT[0], scale**2), np.minimum(_ASPECT[1], scale**-2)
    root = np.sqrt(low + (high - low) * draws[:, 1])
    shares = np.minimum(np.stack([scale * root, scale / root], 1), 1)  # [T, 2]
    sides = shares * (far - corner)
    corners = corner + draws[:, 2:] * (far - corner - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def _shows(crops: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """True for crops that show at least a quarter of their area of image, or half the image."""
    sides = np.minimum(crops[:, 2:], size) - np.maximum(crops[:, :2], 0)
    shown = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(crops[:, 2:] - crops[:, :2], axis=1)
    return (shown >= areas / 4) | (shown >= size[0] * size[1] / 2)


def _fits(crops: np.ndarray, boxes: np.ndarray, min_iou: float) -> np.ndarray:
    """True for crops that show a box's centre and overlap a box by min_iou: bool [T]."""
    boxes = np.asarray(boxes, np.float64)
    low, high = boxes[:, :2], boxes[:, 2:]
    centers = (low + high) / 2  # [M, 2]
    start, end = crops[:, None, :2], crops[:, None, 2:]  # [T, 1, 2]
    fits = ((centers >= start) & (centers < end)).all(axis=2).any(axis=1)
    if min_iou > 0:
        sides = np.maximum(np.minimum(end, high) - np.maximum(start, low), 0)
        common = sides[..., 0] * sides[..., 1]  # [T, M]
        areas = (end - start).prod(axis=2) + (high - low).prod(axis=1)
        fits &= (common >= min_iou * (areas - common)).any(axis=1)
    return fits
