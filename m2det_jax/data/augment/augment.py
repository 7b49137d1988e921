"""A training sample: the steps of config.augment.pipeline in their order, then one drawing.

Every step draws from the one generator of its sample, in the order of the pipeline; what a step
does to boxes is in box_rules.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from m2det_jax.data.augment.affine import compose, random_matrix
from m2det_jax.data.augment.canvas import Canvas, Sample, boxes_in_plane, finish, whole
from m2det_jax.data.augment.color import color_matrix
from m2det_jax.data.augment.crop import crop_window
from m2det_jax.data.augment.mosaic import mosaic
from m2det_jax.data.augment.paste import paste
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.index import DetectionIndex

Step = Callable[[Canvas, DetectionIndex, AugmentSettings, np.random.Generator], Canvas]


def augment(
    index: DetectionIndex, image_id: int, settings: AugmentSettings, rng: np.random.Generator
) -> Sample:
    """Makes the training sample of an image; other images join in where the pipeline says so.

    Raises:
        ValueError: an image cannot be read; the text names the file.
    """
    sample = _make(index, image_id, settings, rng)
    if not settings.enabled or "mixup" not in settings.pipeline:
        return sample
    if rng.random() >= settings.mixup_probability:
        return sample
    share = rng.uniform(settings.mixup_min_share, 1 - settings.mixup_min_share)
    other = _make(index, int(rng.integers(index.num_images)), settings, rng)
    return mix(sample, other, share)


def mix(sample: Sample, other: Sample, share: float) -> Sample:
    """Blends two pictures, `share` of the second; the boxes of both (arXiv 1710.09412)."""
    pictures = Image.fromarray(sample.image), Image.fromarray(other.image)
    return Sample(
        np.asarray(Image.blend(*pictures, share)),
        np.concatenate([sample.boxes, other.boxes]),
        np.concatenate([sample.rows, other.rows]),
    )


def _make(
    index: DetectionIndex, image_id: int, settings: AugmentSettings, rng: np.random.Generator
) -> Sample:
    """All steps but mixup."""
    canvas = whole(index, image_id)
    for name in settings.pipeline if settings.enabled else ():
        if name != "mixup":
            canvas = STEPS[name](canvas, index, settings, rng)
    return finish(canvas, settings)


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
    """Cuts out a part that shows the centre of at least one box, by SSD's rules (crop_window)."""
    if rng.random() >= settings.crop_probability:
        return canvas
    boxes = boxes_in_plane(canvas)
    window = crop_window(canvas.size, canvas.window, boxes, settings.crop_min_scale, rng)
    return dataclasses.replace(canvas, window=window)


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
    window = tuple(np.concatenate([corner, corner + shown]).tolist())
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
    """Changes the colours of the images that are there by now, all alike; never the fill colour."""
    colors = color_matrix(settings, rng)
    if colors is None:
        return canvas
    layers = tuple(dataclasses.replace(layer, colors=colors) for layer in canvas.layers)
    return dataclasses.replace(canvas, layers=layers)


def affine(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Turns, shears, scales and moves the images under the window."""
    if rng.random() >= settings.affine_probability:
        return canvas
    matrix = random_matrix(canvas.window, settings, rng)
    layers = tuple(
        dataclasses.replace(layer, matrix=compose(matrix, layer.matrix)) for layer in canvas.layers
    )
    return dataclasses.replace(canvas, layers=layers, min_visible=settings.min_visible)


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
