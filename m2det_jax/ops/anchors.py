"""Anchors: boxes that depend on the image size alone, and that the network classifies and moves.

All functions return numpy float32 [A, 4] xyxy boxes in pixels, in the order of the network's
outputs: scale, row, column, cell anchor. Sizes of images and of feature maps are (height, width).
Everything is computed in float64 and rounded once.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from m2det_jax.ops.boxes import Real

Size: TypeAlias = Sequence[int | np.integer] | np.ndarray
Values: TypeAlias = Sequence[Real] | np.ndarray

# By side of the image in pixels: anchor sizes of the official code, divided by that side.
_OFFICIAL_FRACTIONS = {
    320: (0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    512: (0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    704: (0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05),
    800: (0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
}


def ssd_sizes(image_size: Size, num_scales: int) -> tuple[float, ...]:
    """Returns default anchor sizes in pixels, finest scale first: num_scales + 1 values.

    The sizes are fractions of the short side of the image. With six scales they are those of the
    official code for the nearest of its image sizes (320, 512, 704 or 800; the smaller one if two
    are equally near). With another number of scales the first fraction is the official one, and the
    others are spread evenly from 0.15 to 1.05, as the official ones at 320, 512 and 800 are. One
    scale has the first fraction and 1.05.

    Raises:
        ValueError: if num_scales < 1 or a side of the image is not positive.
    """
    height, width = _checked_size("image_size", image_size)
    if num_scales < 1:
        raise ValueError(f"num_scales: expected at least 1, got {num_scales}")
    side = min(height, width)
    fractions = _OFFICIAL_FRACTIONS[min(_OFFICIAL_FRACTIONS, key=lambda known: abs(known - side))]
    if num_scales != len(fractions) - 1:
        # From the large end, so that a single scale has 1.05: its sizes span the whole range.
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
    sizes[k] / sqrt(r), and the same box with width and height exchanged.

    Args:
        feature_maps: (height, width) of every scale in cells, finest first.
        image_size: (height, width) in pixels.
        sizes: pixels; one value more than there are scales.
        aspect_ratios: width over height; each also gives its inverse.
        steps: distance of neighbouring cells in pixels, one for each scale, the same along both
            axes. None: the image size divided by that of the feature map, for each axis.
        clip: keep centres inside the image, and widths and heights not above those of the image.
            This is the official rule: edges may still lie outside the image.

    Raises:
        ValueError: if a number of values does not fit the scales, or a size, ratio or step is not
            positive and finite.
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

    The coarsest size is the short side of the image, and each finer one is half of the next: at
    320 px with six scales they are 10, 20, 40, 80, 160 and 320.

    Raises:
        ValueError: if num_scales < 1 or a side of the image is not positive.
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

    A cell has len(ratios) * len(octave_scales) anchors; the octave scale changes fastest. Each
    has the area (sizes[k] * octave_scale)^2 and height / width = ratio. Centres are those of the
    cells, which divide the image evenly.

    Args:
        feature_maps: (height, width) of every scale in cells, finest first.
        image_size: (height, width) in pixels.
        sizes: pixels; one value for each scale.
        ratios: height over width.
        octave_scales: factors on the size.

    Raises:
        ValueError: if the number of sizes does not fit the scales, or a size, ratio or factor is
            not positive and finite.
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
    """Moves the anchors of one image size to the feature maps of another image size.

    The cell anchors of each scale keep their widths and heights in pixels: a convolution reacts to
    the size of an object in pixels, whatever the size of the whole image is. Centres are those of
    the new cells, which divide the new image evenly.

    Args:
        anchors: xyxy; all cells of a scale have the same widths and heights.
        feature_maps: (height, width) in cells of every scale that the anchors were made for.
        new_feature_maps: (height, width) in cells of every scale, as many as feature_maps.
        new_image_size: (height, width) in pixels.

    Raises:
        ValueError: if the anchors do not fit feature_maps, or the numbers of scales differ.
    """
    image_height, image_width = _checked_size("new_image_size", new_image_size)
    cells = [rows * columns for rows, columns in feature_maps]
    per_cell, rest = divmod(len(anchors), sum(cells))
    if rest or len(new_feature_maps) != len(feature_maps):
        raise ValueError(
            f"{len(anchors)} anchors do not fit {len(feature_maps)} feature maps of {sum(cells)} "
            f"cells, or these do not fit the {len(new_feature_maps)} new ones"
        )
    scales, start = [], 0
    for count, (rows, columns) in zip(cells, new_feature_maps, strict=True):
        first_cell = anchors[start : start + per_cell].astype(np.float64)
        shapes = [tuple(shape) for shape in (first_cell[:, 2:] - first_cell[:, :2]).tolist()]
        step = (image_height / rows, image_width / columns)
        scales.append(_grid((int(rows), int(columns)), step, shapes))
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
