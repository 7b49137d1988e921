"""Steps of config.augment.pipeline, which make a training sample: one drawing after all of them.

Every step draws from the one generator of its sample, in the order of the pipeline. What a step
does to boxes is said in `canvas`; mosaic, paste and mixup are in `joining`.

Windows are (left, top, right, bottom). T trials of a crop, M boxes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from m2det_jax.data.augment.canvas import Canvas, Sample, boxes_in_plane, draw_canvas, open_canvas
from m2det_jax.data.augment.drawing import Colors, Window
from m2det_jax.data.augment.joining import mix, mosaic, paste
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.index import DetectionIndex

Step: TypeAlias = Callable[[Canvas, DetectionIndex, AugmentSettings, np.random.Generator], Canvas]

# One rule is drawn: some box must overlap the crop by at least this IoU (0: any overlap will do).
CROP_RULES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
# Bounds of a crop's aspect relative to that of the image it is cut from.
_ASPECT = (0.5, 2.0)
_TRIALS = 50  # crops tried of each rule

_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)
_RGB = np.linalg.inv(_YIQ)


def augment(
    index: DetectionIndex, image_id: int, settings: AugmentSettings, rng: np.random.Generator
) -> Sample:
    """Makes the training sample of an image; other images join in where the pipeline says so.

    Raises:
        ValueError: if an image cannot be read; the text names the file.
    """
    sample = _make(index, image_id, settings, rng)
    if not settings.enabled or "mixup" not in settings.pipeline:
        return sample
    if rng.random() >= settings.mixup_probability:
        return sample
    share = rng.uniform(settings.mixup_min_share, 1 - settings.mixup_min_share)
    other = _make(index, int(rng.integers(index.num_images)), settings, rng)
    return mix(sample, other, share)


def _make(
    index: DetectionIndex, image_id: int, settings: AugmentSettings, rng: np.random.Generator
) -> Sample:
    """Makes a sample by all steps but mixup."""
    canvas = open_canvas(index, image_id)
    for name in settings.pipeline if settings.enabled else ():
        if name != "mixup":
            canvas = STEPS[name](canvas, index, settings, rng)
    return draw_canvas(canvas, settings)


def expand(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Zooms out: the window becomes 1 to expand_max times as large, the picture anywhere in it."""
    if rng.random() >= settings.expand_probability:
        return canvas
    left, top, right, bottom = canvas.window
    width, height = right - left, bottom - top
    ratio = rng.uniform(1, settings.expand_max)
    x, y = rng.uniform(0, 1, 2) * (ratio - 1) * (width, height)
    window = left - x, top - y, left + (width * ratio - x), top + (height * ratio - y)
    return dataclasses.replace(canvas, window=window)


def crop(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Cuts out a part that shows the centre of at least one box, by SSD's rules."""
    if rng.random() >= settings.crop_probability:
        return canvas
    boxes = boxes_in_plane(canvas)
    window = crop_window(canvas.size, canvas.window, boxes, settings.crop_min_scale, rng)
    return dataclasses.replace(canvas, window=window)


def crop_window(
    size: tuple[int, int],
    window: Window,
    boxes: np.ndarray,
    min_scale: float,
    rng: np.random.Generator,
) -> Window:
    """Draws a crop of a window (arXiv 1512.02325, section 2.2).

    A crop has sides of min_scale to 1 of the window's, shows the centre of at least one box, and
    overlaps one by the IoU of its rule. Where there are no boxes it shows some of the image. Up to
    50 crops are tried of each rule, the rules in random order; where none fits the window itself
    is returned.

    Args:
        size: (width, height) of the image, which lies at 0, 0.
        window: the part that is shown without a crop.
        boxes: [M, 4], pixels of the image.
    """
    for rule in rng.permutation(CROP_RULES):
        crops = _draw_crops(window, min_scale, rng)
        fits = _show_image(crops, size) if not len(boxes) else _show_box(crops, boxes, rule)
        if fits.any():
            left, top, right, bottom = crops[np.argmax(fits)].tolist()
            return left, top, right, bottom
    return window


def _draw_crops(window: Window, min_scale: float, rng: np.random.Generator) -> np.ndarray:
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


def _show_image(crops: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns which crops show half the image, or image in a quarter of their area: bool [T]."""
    sides = np.minimum(crops[:, 2:], size) - np.maximum(crops[:, :2], 0)
    shown = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(crops[:, 2:] - crops[:, :2], axis=1)
    return (shown >= areas / 4) | (shown >= size[0] * size[1] / 2)


def _show_box(crops: np.ndarray, boxes: np.ndarray, min_iou: float) -> np.ndarray:
    """Returns which crops show a box's centre and overlap a box by min_iou: bool [T]."""
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


def scale_jitter(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Shows the picture at a factor of its size, cut or padded at random (arXiv 2012.07177)."""
    if rng.random() >= settings.jitter_probability:
        return canvas
    left, top, right, bottom = canvas.window
    sides = np.array([right - left, bottom - top])
    shown = sides / rng.uniform(*settings.jitter_scale)
    corner = (left, top) + rng.random(2) * (sides - shown)
    window = (*corner.tolist(), *(corner + shown).tolist())
    return dataclasses.replace(canvas, window=window)


def flip(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Mirrors the finished picture left-right, wherever in the pipeline it stands."""
    mirror = bool(rng.random() < settings.flip_probability)
    return dataclasses.replace(canvas, mirror=mirror) if mirror else canvas


def photometric(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Changes the colours of all images so far in the same way; never the fill colour."""
    colors = color_matrix(settings, rng)
    if colors is None:
        return canvas
    layers = tuple(dataclasses.replace(layer, colors=colors) for layer in canvas.layers)
    return dataclasses.replace(canvas, layers=layers)


def color_matrix(settings: AugmentSettings, rng: np.random.Generator) -> Colors | None:
    """Draws a photometric distortion; None: this picture stays as it is.

    SSD distorts brightness, contrast, saturation and hue one after the other, the last two in HSV.
    Here they are composed to one affine map of RGB, which Pillow applies in one pass: c * (A x) + b
    with A turning and scaling the chroma plane of YIQ (FCC NTSC). Deviations from the HSV form:
    saturation and hue keep luma instead of HSV's value, and values are cut to 0..255 once, at the
    end.
    """
    chosen = rng.random(4) < settings.photometric_probability
    draws = rng.uniform(-1, 1, 4) * chosen
    if not draws.any():
        return None
    return compose_colors(
        brightness=draws[0] * settings.brightness,
        contrast=1 + draws[1] * settings.contrast,
        saturation=1 + draws[2] * settings.saturation,
        hue=draws[3] * settings.hue,
    )


def compose_colors(*, brightness: float, contrast: float, saturation: float, hue: float) -> Colors:
    """Returns a shift (0..255), two factors and a rotation (degrees) as a matrix for Pillow."""
    cos, sin = (saturation * f(math.radians(hue)) for f in (math.cos, math.sin))
    chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.empty((3, 4))
    matrix[:, :3] = contrast * (_RGB @ chroma @ _YIQ)
    matrix[:, 3] = brightness
    return tuple(matrix.ravel().tolist())


def affine(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Turns, shears, scales and moves the images under the window."""
    if rng.random() >= settings.affine_probability:
        return canvas
    matrix = random_matrix(canvas.window, settings, rng)
    layers = tuple(
        dataclasses.replace(layer, matrix=compose_maps(matrix, layer.matrix))
        for layer in canvas.layers
    )
    return dataclasses.replace(canvas, layers=layers, min_visible=settings.min_visible)


def random_matrix(
    window: Window, settings: AugmentSettings, rng: np.random.Generator
) -> np.ndarray:
    """Draws rotation, shear, scale and translation about the window's centre: [2, 3].

    Order and shear are those of keras-retinanet: scaled along each axis, sheared to
    (x - y sin(a), y cos(a)), moved, then turned. Translation is a share of the window's sides.
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


def compose_maps(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Returns the matrix [2, 3] of the map `inner` followed by `outer`."""
    linear = outer[:, :2] @ inner
    linear[:, 2] += outer[:, 2]
    return linear


STEPS: dict[str, Step] = {
    "expand": expand,
    "crop": crop,
    "flip": flip,
    "photometric": photometric,
    "affine": affine,
    "scale_jitter": scale_jitter,
    "mosaic": mosaic,
    "paste": paste,
}
