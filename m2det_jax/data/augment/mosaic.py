"""Mosaic: four images in one picture (arXiv 2004.10934).

A joint is drawn in the picture; each image gets one of the four rectangles around it, with a corner
at the joint, and is cut where it is larger than its rectangle. Where it is smaller the fill colour
shows. Sizes are (width, height).
"""

import numpy as np

from m2det_jax.data.augment.canvas import Canvas, Layer, read_layer
from m2det_jax.data.augment.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.augment.transforms import scale_to_fit
from m2det_jax.data.index import DetectionIndex

NUM_IMAGES = 4


def mosaic(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Lays three more images, any of the index, beside the first, in random order.

    Each is shown at mosaic_scale times the size that it would have alone. The plane is that of the
    network input from here on.
    """
    if rng.random() >= settings.mosaic_probability:
        return canvas
    others = rng.integers(index.num_images, size=NUM_IMAGES - 1)
    layers = [*canvas.layers, *(read_layer(index, int(i)) for i in others)]
    height, width = settings.image_size
    shares = rng.uniform(settings.mosaic_joint, 1 - settings.mosaic_joint, 2)
    joint = np.rint(shares * (width, height))
    scales = rng.uniform(*settings.mosaic_scale, NUM_IMAGES)
    cells = rng.permutation(NUM_IMAGES)
    placed = tuple(
        _place(layer, int(cell), joint, scale, settings)
        for layer, cell, scale in zip(layers, cells, scales, strict=True)
    )
    window = (0.0, 0.0, float(width), float(height))
    return Canvas(placed, (width, height), window, min_visible=settings.min_visible)


def _place(
    layer: Layer, cell: int, joint: np.ndarray, share: float, settings: ResizeSettings
) -> Layer:
    """Lays an image into cell 0..3 (bit 0: right of the joint, bit 1: below it)."""
    height, width = settings.image_size
    size = np.array(layer.size)
    scale = scale_to_fit((0, 0, *layer.size), settings)[0] * share
    after = np.array([cell & 1, cell >> 1], bool)
    offset = np.where(after, joint, joint - size * scale)
    low, high = np.where(after, joint, 0), np.where(after, (width, height), joint)
    source = np.maximum((low - offset) / scale, 0), np.minimum((high - offset) / scale, size)
    return Layer(
        layer.path,
        layer.size,
        tuple(np.concatenate(source).tolist()),
        layer.boxes,
        layer.rows,
        np.concatenate([np.diag(scale), offset[:, None]], axis=1),
    )
