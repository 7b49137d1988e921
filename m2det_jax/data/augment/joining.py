"""Steps that join other images in: mosaic, paste and mixup.

Mosaic (arXiv 2004.10934): a joint is drawn in the picture; each of four images gets one of the four
rectangles around it, with a corner at the joint, and is cut where it is larger than its rectangle.
Where it is smaller the fill colour shows.

Paste: objects of other images are copied with their boxes onto this one, as the rectangle of the
box, background and all.

Mixup (arXiv 1710.09412): two finished pictures are blended.

Sizes are (width, height). K boxes on the picture, n of a donor image, T trials; boxes and windows
in pixels.
"""

import dataclasses

import numpy as np
from PIL import Image

from m2det_jax.data.augment.canvas import (
    Canvas,
    Layer,
    Sample,
    areas,
    boxes_in_plane,
    overlaps,
    read_layer,
)
from m2det_jax.data.augment.drawing import Window, scale_to_fit
from m2det_jax.data.augment.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.index import DetectionIndex

NUM_IMAGES = 4  # of a mosaic
_TRIALS = 10  # positions tried for a pasted object before it is left out


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
        _lay_in_cell(layer, int(cell), joint, scale, settings)
        for layer, cell, scale in zip(layers, cells, scales, strict=True)
    )
    window = (0.0, 0.0, float(width), float(height))
    return Canvas(placed, (width, height), window, min_visible=settings.min_visible)


def _lay_in_cell(
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
        _as_window(np.concatenate(source)),
        layer.boxes,
        layer.rows,
        np.concatenate([np.diag(scale), offset[:, None]], axis=1),
    )


def paste(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Pastes 1 to paste_max objects of any images of the index into the window.

    An object is shown at paste_scale times the size that it would have in its own picture, and lies
    in the window as a whole. It is left out where it does not fit, or finds no position that keeps
    the rule of `paste_max_covered`. Objects that others cover more in their own picture are never
    taken.
    """
    if rng.random() >= settings.paste_probability:
        return canvas
    boxes = np.asarray(boxes_in_plane(canvas), np.float64)
    covered = np.zeros(len(boxes))  # area that pasted objects hide, at most
    layers = list(canvas.layers)
    for _ in range(int(rng.integers(1, settings.paste_max + 1))):
        donor = read_layer(index, int(rng.integers(index.num_images)))
        free = _uncovered(donor.boxes, settings.paste_max_covered)
        share = rng.uniform(*settings.paste_scale)
        draws = rng.random((_TRIALS, 2))
        if not len(free):
            continue
        chosen = int(rng.choice(free))
        tried = _draw_positions(donor, chosen, share, canvas, settings, draws)
        common = overlaps(boxes, tried)  # [K, T]
        fits = covered[:, None] + common <= settings.paste_max_covered * areas(boxes)[:, None]
        fits = fits.all(axis=0) & (tried[:, :2] >= canvas.window[:2]).all(axis=1)
        if not fits.any():
            continue
        trial = int(np.argmax(fits))
        layers.append(_copy(donor, chosen, tried[trial]))
        boxes = np.concatenate([boxes, tried[trial : trial + 1]])
        covered = np.append(covered + common[:, trial], 0.0)
    return dataclasses.replace(canvas, layers=tuple(layers))


def _uncovered(boxes: np.ndarray, max_covered: float) -> np.ndarray:
    """Returns the numbers of boxes [n, 4] of which all others cover at most that share."""
    boxes = np.asarray(boxes, np.float64)
    common = overlaps(boxes, boxes)
    np.fill_diagonal(common, 0)
    return np.flatnonzero(common.sum(axis=1) <= max_covered * areas(boxes))


def _draw_positions(
    donor: Layer,
    chosen: int,
    share: float,
    canvas: Canvas,
    settings: AugmentSettings,
    draws: np.ndarray,
) -> np.ndarray:
    """Returns boxes [T, 4] in the plane; outside the window where the object is too large."""
    corner, far = np.array(canvas.window[:2]), np.array(canvas.window[2:])
    shown = scale_to_fit(canvas.window, settings)[0]
    scale = share * scale_to_fit((0, 0, *donor.size), settings)[0] / shown
    box = np.asarray(donor.boxes[chosen], np.float64)
    sides = (box[2:] - box[:2]) * scale
    # Too large: before the window's corner, which is refused.
    room = far - corner - sides
    corners = np.where((room >= 0).all(), corner + draws * np.maximum(room, 0), corner - 1)
    return np.concatenate([corners, corners + sides], axis=1)


def _copy(donor: Layer, chosen: int, target: np.ndarray) -> Layer:
    """Returns the rectangle of one box as a layer at its target [4]."""
    box = np.asarray(donor.boxes[chosen], np.float64)
    scale = (target[2:] - target[:2]) / (box[2:] - box[:2])
    offset = target[:2] - box[:2] * scale
    return Layer(
        donor.path,
        donor.size,
        _as_window(box),
        donor.boxes[chosen : chosen + 1],
        donor.rows[chosen : chosen + 1],
        np.concatenate([np.diag(scale), offset[:, None]], axis=1),
    )


def mix(sample: Sample, other: Sample, share: float) -> Sample:
    """Returns two pictures blended, `share` of the second, with the boxes of both."""
    pictures = Image.fromarray(sample.image), Image.fromarray(other.image)
    return Sample(
        np.asarray(Image.blend(*pictures, share)),
        np.concatenate([sample.boxes, other.boxes]),
        np.concatenate([sample.rows, other.rows]),
    )


def _as_window(edges: np.ndarray) -> Window:
    """Returns an array [4] as a window."""
    left, top, right, bottom = edges.tolist()
    return left, top, right, bottom
