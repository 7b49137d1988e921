"""Photometric distortion as one matrix.

SSD distorts brightness, contrast, saturation and hue one after the other, the last two in HSV. Here
they are composed to one affine map of RGB, which Pillow applies in one pass: y = c * (A x) + b with
A turning and scaling the chroma plane of YIQ (FCC NTSC). Deviations from the HSV form: saturation
and hue keep luma instead of HSV's value, and values are cut to 0..255 once, at the end.
"""

import math
from typing import Protocol

import numpy as np

_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)
_RGB = np.linalg.inv(_YIQ)


class ColorSettings(Protocol):
    """The photometric part of AugmentSettings, which explains the fields."""

    photometric_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


def color_matrix(settings: ColorSettings, rng: np.random.Generator) -> tuple[float, ...] | None:
    """Draws a distortion: the 3 x 4 matrix for Pillow's convert("RGB", matrix), row by row.

    None: this picture stays as it is.
    """
    chosen = rng.random(4) < settings.photometric_probability
    draws = rng.uniform(-1, 1, 4) * chosen
    if not draws.any():
        return None
    return compose(
        brightness=draws[0] * settings.brightness,
        contrast=1 + draws[1] * settings.contrast,
        saturation=1 + draws[2] * settings.saturation,
        hue=draws[3] * settings.hue,
    )


def compose(
    *, brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[float, ...]:
    """Composes a shift (0..255), two factors and a rotation (degrees) to 12 numbers."""
    cos, sin = (saturation * f(math.radians(hue)) for f in (math.cos, math.sin))
    chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.empty((3, 4))
    matrix[:, :3] = contrast * (_RGB @ chroma @ _YIQ)
    matrix[:, 3] = brightness
    return tuple(matrix.ravel().tolist())
