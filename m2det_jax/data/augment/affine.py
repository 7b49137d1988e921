"""Random affine maps, and drawing an image through one.

Pillow's bilinear `Image.transform` looks at 2 x 2 pixels of its source, whatever the scale, and so
would alias when an image gets smaller. The image is therefore brought to its final scale first, by
an antialiased resize along its own axes, and only turned and sheared by `transform`. Where an image
gets larger there is nothing to antialias, and `transform` alone does it.

Matrices are float64 [2, 3]; sizes are (width, height); windows (left, top, right, bottom).
"""

import math

import numpy as np
from PIL import Image

from m2det_jax.data.augment.box_rules import Window, boxes_around, corners_of
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.augment.transforms import Colors, Piece


def random_matrix(
    window: Window, settings: AugmentSettings, rng: np.random.Generator
) -> np.ndarray:
    """Draws rotation, shear, scale and translation about the window's centre.

    The order is that of keras-retinanet: scaled along each axis, sheared, moved, then turned; so is
    its shear, x - y sin(a), y cos(a). Translation is a share of the window's sides.
    """
    left, top, right, bottom = window
    turn, slant = (
        math.radians(rng.uniform(-limit, limit))
        for limit in (settings.affine_rotation, settings.affine_shear)
    )
    scale = rng.uniform(*settings.affine_scale, 2)
    move = rng.uniform(-1, 1, 2) * settings.affine_translation * (right - left, bottom - top)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    shear = np.array([[1, -math.sin(slant)], [0, math.cos(slant)]])
    center = np.array([left + right, top + bottom]) / 2
    linear = rotation @ shear @ np.diag(scale)
    offset = center + rotation @ move - linear @ center
    return np.concatenate([linear, offset[:, None]], axis=1)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Returns the matrix of going through `inner` and then through `outer`."""
    linear = outer[:, :2] @ inner
    linear[:, 2] += outer[:, 2]
    return linear


def warp(
    image: Image.Image,
    source: Window,
    factor: int,
    matrix: np.ndarray,
    shown: Window,
    colors: Colors | None = None,
) -> Piece | None:
    """Draws a part of an image through an affine map; None if nothing of it is shown.

    Args:
        image: RGB, decoded at 1/factor of its size.
        source: the part, pixels of the full-size image.
        matrix: from these to pixels of the network input.
        shown: rectangle of the network input, whole pixels, that it may cover.
    """
    corners = corners_of(np.array([source])) @ matrix[:, :2].T + matrix[:, 2]
    left, top, right, bottom = boxes_around(corners)[0]
    left, top = max(math.floor(left), int(shown[0])), max(math.floor(top), int(shown[1]))
    right, bottom = min(math.ceil(right), int(shown[2])), min(math.ceil(bottom), int(shown[3]))
    if right <= left or bottom <= top:
        return None
    sides = np.array(source[2:]) - source[:2]
    scale = np.minimum(np.hypot(matrix[0, :2], matrix[1, :2]), 1)
    size = tuple(max(1, round(float(side))) for side in sides * scale)
    picture = image.resize(size, Image.Resampling.BILINEAR, box=[edge / factor for edge in source])
    if colors is not None:
        picture = picture.convert("RGB", colors)
    # Pillow asks for the way back: from the piece's pixels to those of `picture`.
    back = np.linalg.inv(matrix[:, :2])
    start = back @ (np.array([left, top]) - matrix[:, 2]) - source[:2]
    ratio = np.array(size) / sides
    data = np.concatenate([back, start[:, None]], axis=1) * ratio[:, None]
    wanted, how = (right - left, bottom - top), Image.Transform.AFFINE
    coefficients = tuple(data.ravel().tolist())
    # Both in the same way, or the mask's edge would be another by a pixel.
    mask, picture = (
        image.transform(wanted, how, coefficients, Image.Resampling.BILINEAR)
        for image in (Image.new("L", size, 255), picture)
    )
    return Piece(picture, (left, top), mask)
