"""Shapes of the synthetic data set: polygons in the unit square, painted as masks of any size.

Own polygons instead of a font: the same pixels whatever fonts or FreeType a machine has.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

MIN_SIDE = 8  # pixels, shorter side of the smallest box

_OVERSAMPLE = 4
_FAINT = 96  # alpha below this is not painted: a box must not be stretched by pixels nobody can see
_ERASE, _INK, _SECOND_INK = 0, 1, 2

_ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_CIRCLE = [(0.5 + 0.5 * np.cos(t), 0.5 + 0.5 * np.sin(t)) for t in _ANGLES]
_HOLE = [(0.5 + 0.56 * (x - 0.5), 0.5 + 0.56 * (y - 0.5)) for x, y in _CIRCLE]
_BOX = [(0, 0), (1, 0), (1, 1), (0, 1)]
_UPPER_BAND = [(0, 0.2), (1, 0.2), (1, 0.4), (0, 0.4)]
_LOWER_BAND = [(0, 0.6), (1, 0.6), (1, 0.8), (0, 0.8)]
_CROSS = [
    *[(0.34, 0), (0.66, 0), (0.66, 0.34), (1, 0.34), (1, 0.66), (0.66, 0.66)],
    *[(0.66, 1), (0.34, 1), (0.34, 0.66), (0, 0.66), (0, 0.34), (0.34, 0.34)],
]
_LETTER_A = [(0, 1), (0.37, 0), (0.63, 0), (1, 1), (0.77, 1), (0.69, 0.78), (0.31, 0.78), (0.23, 1)]
_LETTER_A_HOLE = [(0.385, 0.57), (0.5, 0.23), (0.615, 0.57)]

Polygon = Sequence[tuple[float, float]]

# class -> (polygons with their ink, painted in order, the first one the outline; range of w / h)
_SHAPES: dict[str, tuple[list[tuple[Polygon, int]], tuple[float, float]]] = {
    "disc": ([(_CIRCLE, _INK)], (0.85, 1.18)),
    "ring": ([(_CIRCLE, _INK), (_HOLE, _ERASE)], (0.85, 1.18)),
    "triangle": ([([(0.5, 0), (1, 1), (0, 1)], _INK)], (0.85, 1.3)),
    "cross": ([(_CROSS, _INK)], (0.85, 1.18)),
    "stripes": (
        [(_BOX, _INK), (_UPPER_BAND, _SECOND_INK), (_LOWER_BAND, _SECOND_INK)],
        (0.8, 1.5),
    ),
    "letter_A": ([(_LETTER_A, _INK), (_LETTER_A_HOLE, _ERASE)], (0.8, 1.0)),
}
CLASS_NAMES = tuple(_SHAPES)


def object_masks(
    rng: np.random.Generator, name: str, side: int, limit: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Paints one object, a little turned and stretched, with a shorter side of about `side` pixels.

    Returns:
        (alpha, second), float32 [h, w] in 0..1: the cover, cropped to its tight box, and the share
        of the second ink. MIN_SIDE <= h, w; h <= limit[0], w <= limit[1].
    """
    polygons, aspects = _SHAPES[name]
    aspect, angle = np.exp(rng.uniform(*np.log(aspects))), np.radians(rng.uniform(-12, 12))
    while True:
        wanted = np.rint([side * max(1 / aspect, 1), side * max(aspect, 1)])
        alpha, second = _paint(polygons, angle, np.minimum(wanted, limit).astype(int))
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        tight = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if min(alpha[tight].shape) >= MIN_SIDE:
            return alpha[tight], second[tight]
        side += 1  # faint tips were cut off


def _paint(
    polygons: list[tuple[Polygon, int]], angle: float, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paints polygons turned by `angle`; the outline fills `shape` = (h, w). Returns two masks."""
    scale = shape[::-1].astype(float)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [(np.asarray(points) - 0.5) * scale @ turn for points, _ in polygons]
    low, high = turned[0].min(0), turned[0].max(0)
    size = int(shape[1]) * _OVERSAMPLE, int(shape[0]) * _OVERSAMPLE
    layers = [Image.new("L", size) for _ in range(2)]
    pens = [ImageDraw.Draw(layer) for layer in layers]
    for points, (_, ink) in zip(turned, polygons, strict=True):
        corners = (points - low) / (high - low) * (scale * _OVERSAMPLE - 1)
        pens[0].polygon([tuple(p) for p in corners], fill=0 if ink == _ERASE else 255)
        pens[1].polygon([tuple(p) for p in corners], fill=255 if ink == _SECOND_INK else 0)
    alpha, second = (np.asarray(layer.reduce(_OVERSAMPLE), np.float32) / 255 for layer in layers)
    return np.where(alpha < _FAINT / 255, np.float32(0), alpha), second
