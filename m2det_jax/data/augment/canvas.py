"""A picture in the making: images laid in one plane, and the window of it that will be shown.

The steps of config.augment.pipeline turn one Canvas into the next without touching a pixel; at the
end `finish` draws every image once, through the composition of all that was done to it, and takes
its boxes through the same map. The plane is that of the first image in its own pixels, or, after a
mosaic, that of the network input.

Sizes are (width, height). n boxes of one image, K of all, H, W of the network input.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from m2det_jax.data.augment.affine import warp
from m2det_jax.data.augment.box_rules import (
    Window,
    boxes_around,
    corners_of,
    cut,
    cut_polygons,
    shows_enough,
    stays,
)
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.augment.transforms import (
    Colors,
    Piece,
    cut_out,
    decode,
    lay_out,
    map_boxes,
    mirror_boxes,
    place_part,
    scale_to_fit,
)
from m2det_jax.data.index import DetectionIndex

# Where an image lies that is its own plane.
IN_PLACE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
IN_PLACE.flags.writeable = False


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A part of an image, and where it lies.

    Attributes:
        path, size: of the image.
        source: window of the upright image that may be seen, pixels, inside the image.
        boxes: [n, 4], pixels of the image.
        rows: int64 [n]; their rows in the index, by which every box can be traced.
        matrix: float64 [2, 3], from pixels of the image to the plane.
        colors: how its colours are changed.
    """

    path: str
    size: tuple[int, int]
    source: Window
    boxes: np.ndarray
    rows: np.ndarray
    matrix: np.ndarray = dataclasses.field(default_factory=lambda: IN_PLACE)
    colors: Colors | None = None

    @property
    def upright(self) -> bool:
        """Its sides are parallel to those of the plane."""
        return self.matrix is IN_PLACE or not (self.matrix[0, 1] or self.matrix[1, 0])


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
    """Layers, and what is shown of them.

    Attributes:
        layers: the last lies on top.
        size: (width, height) of the plane that the images lie in, from 0, 0.
        window: what is shown, in the plane; may reach beyond the images.
        mirror: the finished picture is flipped left-right.
        min_visible: None: the centre rule for boxes; else the share of the share rule.
    """

    layers: tuple[Layer, ...]
    size: tuple[int, int]
    window: Window
    mirror: bool = False
    min_visible: float | None = None


class Sample(NamedTuple):
    """image uint8 [H, W, 3]; boxes float32 [m, 4]; rows int64 [m], those of the boxes' index."""

    image: np.ndarray
    boxes: np.ndarray
    rows: np.ndarray


def read_layer(index: DetectionIndex, image_id: int) -> Layer:
    """Returns a whole image as a layer in its own plane."""
    size = tuple(index.sizes[image_id].tolist())
    boxes, _ = index.objects(image_id)
    rows = np.arange(index.offsets[image_id], index.offsets[image_id + 1])
    return Layer(index.image_paths[image_id], size, (0, 0, *size), boxes, rows)


def whole(index: DetectionIndex, image_id: int) -> Canvas:
    """Returns the canvas that shows one whole image."""
    layer = read_layer(index, image_id)
    width, height = layer.size
    return Canvas((layer,), layer.size, (0.0, 0.0, float(width), float(height)))


def boxes_in_plane(canvas: Canvas) -> np.ndarray:
    """Returns the boxes [K, 4] of all layers, as far as they can be seen, in the plane."""
    found = []
    for layer in canvas.layers:
        boxes = layer.boxes
        if layer.source != (0, 0, *layer.size):
            boxes = cut(boxes[stays(boxes, layer.source, canvas.min_visible)], layer.source)
        if layer.matrix is not IN_PLACE:
            boxes = boxes_around(_transform(corners_of(boxes), layer.matrix))
        found.append(boxes)
    return found[0] if len(found) == 1 else np.concatenate(found)


def finish(canvas: Canvas, settings: AugmentSettings) -> Sample:
    """Draws the window onto the network input, with the boxes that stay (box_rules).

    Raises:
        ValueError: an image cannot be decoded, or has another size by now; the text names it.
    """
    pieces, boxes, rows = [], [], []
    for layer in canvas.layers:
        draw = _draw_upright if layer.upright else _draw_turned
        piece, layer_boxes, layer_rows = draw(layer, canvas, settings)
        pieces += [piece] if piece else []
        boxes.append(layer_boxes)
        rows.append(layer_rows)
    image = lay_out(pieces, settings, mirror=canvas.mirror)
    found = boxes[0] if len(boxes) == 1 else np.concatenate(boxes)
    if canvas.mirror:
        found = mirror_boxes(found, settings.image_size[1])
    found_rows = rows[0] if len(rows) == 1 else np.concatenate(rows)
    return Sample(image, found.astype(np.float32), found_rows)


def _draw_upright(
    layer: Layer, canvas: Canvas, settings: AugmentSettings
) -> tuple[Piece | None, np.ndarray, np.ndarray]:
    """Returns (its piece, None if unseen; boxes [m, 4]; rows [m])."""
    scale = float(layer.matrix[0, 0]), float(layer.matrix[1, 1])
    offset = float(layer.matrix[0, 2]), float(layer.matrix[1, 2])
    placement = place_part(layer.source, scale, offset, canvas.window, settings)
    if placement is None:
        return None, np.zeros((0, 4)), layer.rows[:0]
    image, factor = decode(layer.path, layer.size, placement.scale)
    piece = Piece(cut_out(image, placement, factor, layer.colors), placement.target[:2])
    return piece, *map_boxes(layer.boxes, layer.rows, placement, canvas.min_visible)


def _draw_turned(
    layer: Layer, canvas: Canvas, settings: AugmentSettings
) -> tuple[Piece | None, np.ndarray, np.ndarray]:
    """As `_draw_upright`, through an affine map."""
    scale, margin = scale_to_fit(canvas.window, settings)
    shift = margin - np.array(canvas.window[:2]) * scale
    matrix = layer.matrix * scale[:, None]
    matrix[:, 2] += shift
    low = np.rint(margin)
    sides = np.array(canvas.window[2:]) - canvas.window[:2]
    shown = (*low.tolist(), *np.rint(margin + sides * scale).tolist())

    boxes = np.asarray(layer.boxes, np.float64).reshape(-1, 4)
    inside = cut(boxes, layer.source)
    corners = _transform(corners_of(inside), matrix)
    mapped, areas = cut_polygons(corners, shown)
    sides = boxes[:, 2:] - boxes[:, :2]
    whole_areas = sides[:, 0] * sides[:, 1] * abs(np.linalg.det(matrix[:, :2]))
    kept = shows_enough(areas, whole_areas, canvas.min_visible)

    image_scale = np.hypot(matrix[0, :2], matrix[1, :2])  # along x and y of the image
    image, factor = decode(layer.path, layer.size, image_scale)
    piece = warp(image, layer.source, factor, matrix, shown, layer.colors)
    return piece, mapped[kept], layer.rows[kept]


def _transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Takes points [..., 2] through a matrix [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]
