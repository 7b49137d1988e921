"""Box paste: objects of other images, copied with their boxes onto this one.

What is copied is the rectangle of the box, background and all. K boxes on the picture, n of a donor
image; boxes and windows in pixels.
"""

import dataclasses

import numpy as np

from m2det_jax.data.augment.box_rules import areas, overlaps
from m2det_jax.data.augment.canvas import Canvas, Layer, boxes_in_plane, read_layer
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.augment.transforms import scale_to_fit
from m2det_jax.data.index import DetectionIndex

_TRIALS = 10  # places tried for an object before it is left out


def paste(
    canvas: Canvas, index: DetectionIndex, settings: AugmentSettings, rng: np.random.Generator
) -> Canvas:
    """Pastes 1 to paste_max objects of any images of the index into the window.

    An object is shown at paste_scale times the size that it would have in its own picture, and lies
    in the window as a whole. It is left out where it does not fit, or finds no place that keeps the
    rule of `paste_max_covered`. Objects that others cover more than that in their own picture are
    never taken.
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
        placed = _place(donor, chosen, share, canvas, settings, draws)
        common = overlaps(boxes, placed)  # [K, T]
        fits = covered[:, None] + common <= settings.paste_max_covered * areas(boxes)[:, None]
        fits = fits.all(axis=0) & (placed[:, :2] >= canvas.window[:2]).all(axis=1)
        if not fits.any():
            continue
        trial = int(np.argmax(fits))
        layers.append(_copy(donor, chosen, placed[trial]))
        boxes = np.concatenate([boxes, placed[trial : trial + 1]])
        covered = np.append(covered + common[:, trial], 0.0)
    return dataclasses.replace(canvas, layers=tuple(layers))


def _uncovered(boxes: np.ndarray, max_covered: float) -> np.ndarray:
    """Returns the numbers of boxes [n, 4] that all others together cover that much at most."""
    boxes = np.asarray(boxes, np.float64)
    common = overlaps(boxes, boxes)
    np.fill_diagonal(common, 0)
    return np.flatnonzero(common.sum(axis=1) <= max_covered * areas(boxes))


def _place(
    donor: Layer,
    chosen: int,
    share: float,
    canvas: Canvas,
    settings: AugmentSettings,
    draws: np.ndarray,
) -> np.ndarray:
    """Returns places [T, 4] in the plane; outside the window where the object is too large."""
    corner, far = np.array(canvas.window[:2]), np.array(canvas.window[2:])
    shown = scale_to_fit(canvas.window, settings)[0]
    scale = share * scale_to_fit((0, 0, *donor.size), settings)[0] / shown
    box = np.asarray(donor.boxes[chosen], np.float64)
    sides = (box[2:] - box[:2]) * scale
    # Too large: before the window's corner, which is refused.
    room = far - corner - sides
    corners = np.where((room >= 0).all(), corner + draws * np.maximum(room, 0), corner - 1)
    return np.concatenate([corners, corners + sides], axis=1)


def _copy(donor: Layer, chosen: int, place: np.ndarray) -> Layer:
    """Returns the rectangle of one box as a layer at its place."""
    box = np.asarray(donor.boxes[chosen], np.float64)
    scale = (place[2:] - place[:2]) / (box[2:] - box[:2])
    offset = place[:2] - box[:2] * scale
    return Layer(
        donor.path,
        donor.size,
        tuple(box.tolist()),
        donor.boxes[chosen : chosen + 1],
        donor.rows[chosen : chosen + 1],
        np.concatenate([np.diag(scale), offset[:, None]], axis=1),
    )
