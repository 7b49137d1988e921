"""Anchors: the boxes, fixed by the image size, that the network classifies and moves.

All functions give numpy float32 [A, 4] xyxy boxes in pixels, in the order in which the network
writes its outputs: scale, row, column, cell anchor. Sizes of images and of feature maps are
(height, width). Computed in float64 and rounded once.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from m2det_jax.ops.boxes import Real

Size: TypeAlias = Sequence[int | np.integer] | np.ndarray
Values: TypeAlias = Sequence[Real] | np.ndarray

# Anchor sizes of the official code over the side of the image, by that side in pixels.
_OFFICIAL_FRACTIONS = {
    320: (0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    512: (0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    704: (0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05),
    800: (0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
}


def ssd_sizes(image_size: Size, num_scales: int) -> tuple[float, ...]:
    """Returns default anchor sizes in pixels, finest scale first: num_scales + 1 values.

    The sizes are fractions of the short side of the image. With six scales they are those that
    the official code has for the nearest of its sizes (320, 512, 704 or 800; the smaller one if
    two are as near). With another number of scales the first fraction is that of the nearest
    official size, and the others are spread evenly from 0.15 to 1.05, which is how the official
    ones at 320, 512 and 800 are made; one scale has the first and 1.05.

    Raises:
        ValueError: If num_scales < 1 or a side of the image is not positive.
    """
    height, width = _checked_size("image_size", image_size)
    if num_scales < 1:
        raise ValueError(f"num_scales: expected at least 1, got {num_scales}")
    side = min(height, width)
    fractions = _OFFICIAL_FRACTIONS[min(_OFFICIAL_FRACTIONS, key=lambda known: abs(known - side))]
    if num_scales != len(fractions) - 1:
        # Backwards, so that a single scale keeps the far end: its sizes span the whole range.
        spread = np.linspace(1.05, 0.15, num_scales)[::-1]
        fractions = (fractions[0], *spread.tolist())
    return tuple(fraction * side for fraction in fractions)


def ssd_anchors(
    feature_maps: Sequence[Size] | np.ndarray,
    image_size: Size,
    *,
    sizes: Values,
    aspect_ratios: Values = (2, 3),
    steps: Values | None = None,
    clip: bool = True,
) -> Float[np.ndarray, "A 4"]:
    """Builds SSD anchors (arXiv 1512.02325, section 2.2), as the official M2Det code does.

    A cell of scale k has 2 + 2 len(aspect_ratios) anchors: squares of side sizes[k] and
    sqrt(sizes[k] sizes[k + 1]), then for every ratio r a box of width sizes[k] sqrt(r) and height
    sizes[k] / sqrt(r), and the same box standing.

    Args:
        feature_maps: (height, width) of every scale in cells, finest first.
        image_size: (height, width) in pixels.
        sizes: Pixels, one more than there are scales.
        aspect_ratios: Width over height; each also gives its inverse.
        steps: Distance of neighbouring cells in pixels, one a scale, the same along both axes;
            None for the image size over that of the feature map, axis by axis.
        clip: Hold centres inside the image, and widths and heights at those of the image at
            most. This is the official rule: edges may still lie outside the image.

    Raises:
        ValueError: If a count of scales does not fit, or a size or step is not positive.
    """
    image_height, image_width = _checked_size("image_size", image_size)
    if len(feature_maps) == 0:
        raise ValueError("feature_maps: expected at least one (height, width), got none")
    sizes = _checked_values("sizes", sizes, len(feature_maps) + 1)
    aspect_ratios = _checked_values("aspect_ratios", aspect_ratios, len(aspect_ratios))
    if steps is not None:
        steps = _checked_values("steps", steps, len(feature_maps))
    scales = []
    for k, feature_map in enumerate(feature_maps):
        rows, columns = _checked_size(f"feature_maps[{k}]", feature_map)
        step = (image_height / rows, image_width / columns)
        if steps is not None:
            step = (steps[k], steps[k])
        shapes = _ssd_shapes(sizes[k], sizes[k + 1], aspect_ratios)
        scales.append(_grid((rows, columns), step, shapes))
    anchors = np.concatenate(scales)  # [A, 4] cxcywh
    if clip:
        limit = np.array([image_width, image_height, image_width, image_height])
        anchors = np.clip(anchors, 0, limit[None, :])
    return _to_xyxy(anchors)


def retinanet_sizes(image_size: Size, num_scales: int) -> tuple[float, ...]:
    """Returns default sizes for `retinanet_anchors` in pixels, finest scale first.

    The coarsest is the short side of the image, and each finer one half of the next: at 320 px
    with six scales 10, 20, 40, 80, 160 and 320.

    Raises:
        ValueError: If num_scales < 1 or a side of the image is not positive.
    """
    side = min(_checked_size("image_size", image_size))
    if num_scales < 1:
        raise ValueError(f"num_scales: expected at least 1, got {num_scales}")
    return tuple(side / 2**k for k in reversed(range(num_scales)))


def retinanet_anchors(
    feature_maps: Sequence[Size] | np.ndarray,
    image_size: Size,
    *,
    sizes: Values,
    ratios: Values = (0.5, 1, 2),
    octave_scales: Values = (1, 2 ** (1 / 3), 2 ** (2 / 3)),
) -> Float[np.ndarray, "A 4"]:
    """Builds RetinaNet anchors (arXiv 1708.02002, section 4), not clipped.

    A cell has len(ratios) * len(octave_scales) anchors, the octave scale changing fastest. Each
    has the area (sizes[k] * octave_scale)^2 and height / width = ratio. Centres are those of the
    cells, which divide the image evenly.

    Args:
        feature_maps: (height, width) of every scale in cells, finest first.
        image_size: (height, width) in pixels.
        sizes: Pixels, one a scale.
        ratios: Height over width.
        octave_scales: Factors on the size.

    Raises:
        ValueError: If the number of sizes does not fit, or a size, ratio or factor is not positive.
    """
    image_height, image_width = _checked_size("image_size", image_size)
    if len(feature_maps) == 0:
        raise ValueError("feature_maps: expected at least one (height, width), got none")
    sizes = _checked_values("sizes", sizes, len(feature_maps))
    ratios = _checked_values("ratios", ratios, len(ratios))
    octave_scales = _checked_values("octave_scales", octave_scales, len(octave_scales))
    scales = []
    for k, feature_map in enumerate(feature_maps):
        rows, columns = _checked_size(f"feature_maps[{k}]", feature_map)
        step = (image_height / rows, image_width / columns)
        shapes = [
            (sizes[k] * factor / math.sqrt(ratio), sizes[k] * factor * math.sqrt(ratio))
            for ratio in ratios
            for factor in octave_scales
        ]
        scales.append(_grid((rows, columns), step, shapes))
    return _to_xyxy(np.concatenate(scales))


def spread_anchors(
    anchors: Float[np.ndarray, "A 4"],
    feature_maps: Sequence[Size],
    *,
    new_feature_maps: Sequence[Size],
    new_image_size: Size,
) -> Float[np.ndarray, "B 4"]:
    """Lays the anchors of one image size out on the feature maps of another.

    Each scale keeps the widths and heights, in pixels, of its cell anchors: a convolution answers
    to the size of an object in pixels, whatever the size of the image around it. Centres are those
    of the new cells, which divide the new image evenly.

    Args:
        anchors: All cells of a scale have the same widths and heights.
        feature_maps: (height, width) in cells of every scale that they were made for.
        new_feature_maps: As many.
        new_image_size: (height, width) in pixels.

    Raises:
        ValueError: If the anchors are not those of the feature maps.
    """
    image_height, image_width = _checked_size("new_image_size", new_image_size)
    cells = [rows * columns for rows, columns in feature_maps]
    per_cell, rest = divmod(len(anchors), sum(cells))
    if rest or len(new_feature_maps) != len(feature_maps):
        raise ValueError(
            f"{len(anchors)} anchors do not fit {len(feature_maps)} feature maps of {sum(cells)} "
            f"cells, or these not the {len(new_feature_maps)} new ones"
        )
    scales, start = [], 0
    for count, (rows, columns) in zip(cells, new_feature_maps, strict=True):
        first_cell = anchors[start : start + per_cell].astype(np.float64)
        shapes = [tuple(shape) for shape in (first_cell[:, 2:] - first_cell[:, :2]).tolist()]
        scales.append(_grid((rows, columns), (image_height / rows, image_width / columns), shapes))
        start += count * per_cell
    return _to_xyxy(np.concatenate(scales))


def _ssd_shapes(
    size: float, next_size: float, aspect_ratios: list[float]
) -> list[tuple[float, float]]:
    middle = math.sqrt(size * next_size)
    shapes = [(size, size), (middle, middle)]
    for ratio in aspect_ratios:
        long, short = size * math.sqrt(ratio), size / math.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return shapes


def _grid(
    cells: tuple[int, int], step: tuple[float, float], shapes: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Puts every (width, height) of shapes at the centre of every cell: [rows*columns*K, 4]."""
    y = (np.arange(cells[0]) + 0.5) * step[0]
    x = (np.arange(cells[1]) + 0.5) * step[1]
    grid = np.empty((cells[0], cells[1], len(shapes), 4))  # cxcywh
    grid[..., 0] = x[None, :, None]
    grid[..., 1] = y[:, None, None]
    grid[..., 2:] = np.asarray(shapes, np.float64)[None, None]
    return grid.reshape(-1, 4)


def _to_xyxy(cxcywh: np.ndarray) -> np.ndarray:
    centre, half = cxcywh[:, :2], cxcywh[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def _checked_size(name: str, size: Size) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name}: expected (height, width), both at least 1, got {tuple(size)}")
    return int(size[0]), int(size[1])


def _checked_values(name: str, values: Values, count: int) -> list[float]:
    if len(values) != count:
        raise ValueError(f"{name}: expected {count} values, got {len(values)}: {tuple(values)}")
    numbers = [float(value) for value in values]
    if not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{name}: expected finite values above 0, got {tuple(numbers)}")
    return numbers
