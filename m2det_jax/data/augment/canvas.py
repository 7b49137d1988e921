"""Canvas: images laid in one plane with their boxes, and the window of it that will be shown.

The steps of config.augment.pipeline turn one Canvas into the next without touching a pixel; at the
end `draw_canvas` draws every image once, through the composition of all that was done to it, and
takes its boxes through the same map. The plane is that of the first image in its own pixels, or,
after a mosaic, that of the network input.

Which boxes stay, and where: all rules, in this one place.

- Centre rule, for pictures of expand, crop, scale_jitter, flip and paste alone: a box stays if its
  centre lies in the window that is shown.
- Share rule, for pictures of affine or mosaic: a box stays if at least `min_visible` of its area is
  shown (config.augment.min_visible).
- A box that stays is cut to what is shown of it. Nothing else ever drops or changes a box.
- Under an affine map a box becomes a parallelogram. It is cut to the picture first, and the box of
  what is left is taken: it holds everything that is seen of the object, and is never larger than
  the box of the four corners.
- paste adds boxes of other images, whole, on top. It covers at most `paste_max_covered` of any box
  below, all pasted boxes together; boxes that are covered to that share stay as they are.
- mixup shows two pictures through each other, with the boxes of both; all count alike in the loss.

Boxes are xyxy with exclusive x2, y2; windows (left, top, right, bottom) in the same pixels. Sizes
are (width, height). n boxes of one image, K of all, M any, H, W of the network input.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from m2det_jax.data.augment.drawing import (
    Colors,
    Piece,
    PixelMap,
    Window,
    decode,
    lay_out,
    map_part,
    resize_part,
    scale_to_fit,
    warp,
)
from m2det_jax.data.augment.settings import AugmentSettings
from m2det_jax.data.index import DetectionIndex

# The matrix of an image that is its own plane.
IN_PLACE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
IN_PLACE.flags.writeable = False


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A part of an image, and its position in the plane.

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
        """Whether its sides are parallel to those of the plane."""
        return self.matrix is IN_PLACE or not (self.matrix[0, 1] or self.matrix[1, 0])


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
    """Layers in one plane, and the window that is shown.

    Attributes:
        layers: the last lies on top.
        size: (width, height) of the plane that the images lie in, from 0, 0.
        window: the part of the plane that is shown; may reach beyond the images.
        mirror: the finished picture is flipped left-right.
        min_visible: None: the centre rule for boxes; else the share of the share rule.
    """

    layers: tuple[Layer, ...]
    size: tuple[int, int]
    window: Window
    mirror: bool = False
    min_visible: float | None = None


class Sample(NamedTuple):
    """Picture uint8 [H, W, 3], boxes float32 [m, 4], and their rows in the index, int64 [m]."""

    image: np.ndarray
    boxes: np.ndarray
    rows: np.ndarray


def read_layer(index: DetectionIndex, image_id: int) -> Layer:
    """Returns a whole image as a layer in its own plane."""
    width, height = index.sizes[image_id].tolist()
    start, end = index.offsets[image_id : image_id + 2]
    boxes, rows = index.boxes[start:end], np.arange(start, end)
    source = (0, 0, width, height)
    return Layer(index.image_paths[image_id], (width, height), source, boxes, rows)


def open_canvas(index: DetectionIndex, image_id: int) -> Canvas:
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


def draw_canvas(canvas: Canvas, settings: AugmentSettings) -> Sample:
    """Draws the window onto the network input, with the boxes that stay.

    Raises:
        ValueError: if an image cannot be decoded, or has another size by now; the text names it.
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
    """Returns (the layer as a piece, None if unseen; boxes float64 [m, 4]; rows int64 [m])."""
    scale = float(layer.matrix[0, 0]), float(layer.matrix[1, 1])
    offset = float(layer.matrix[0, 2]), float(layer.matrix[1, 2])
    pixel_map = map_part(layer.source, scale, offset, canvas.window, settings)
    if pixel_map is None:
        return None, np.zeros((0, 4)), layer.rows[:0]
    image, factor = decode(layer.path, layer.size, pixel_map.scale)
    piece = resize_part(image, pixel_map, factor, layer.colors)
    return piece, *map_boxes(layer.boxes, layer.rows, pixel_map, canvas.min_visible)


def _draw_turned(
    layer: Layer, canvas: Canvas, settings: AugmentSettings
) -> tuple[Piece | None, np.ndarray, np.ndarray]:
    """Returns the same as `_draw_upright`, through an affine map."""
    scale, margin = scale_to_fit(canvas.window, settings)
    shift = margin - np.array(canvas.window[:2]) * scale
    matrix = layer.matrix * scale[:, None]
    matrix[:, 2] += shift
    sides = np.array(canvas.window[2:]) - canvas.window[:2]
    (x1, y1), (x2, y2) = np.rint(margin).tolist(), np.rint(margin + sides * scale).tolist()
    shown = (x1, y1, x2, y2)

    boxes = np.asarray(layer.boxes, np.float64).reshape(-1, 4)
    inside = cut(boxes, layer.source)
    corners = _transform(corners_of(inside), matrix)
    mapped, shown_areas = cut_polygons(corners, shown)
    whole_areas = areas(boxes) * abs(np.linalg.det(matrix[:, :2]))
    kept = _shows_enough(shown_areas, whole_areas, canvas.min_visible or 0.0)

    image_scale = np.hypot(matrix[0, :2], matrix[1, :2])  # along x and y of the image
    image, factor = decode(layer.path, layer.size, image_scale)
    piece = warp(image, layer.source, factor, matrix, shown, layer.colors)
    return piece, mapped[kept], layer.rows[kept]


def _transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Takes points [..., 2] through a matrix [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def map_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    pixel_map: PixelMap,
    min_visible: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Takes boxes of an image to the network input.

    A box stays, cut to the picture, by the rule of `stays`; nothing else drops a box.

    Args:
        boxes: [M, 4], pixels of the image.
        labels: [M], anything that boxes have.
        min_visible: None: the centre rule; else the share of the share rule.

    Returns:
        (boxes float64 [m, 4], their labels [m]).
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    kept = stays(boxes, pixel_map.source, min_visible)
    corners = boxes[kept].reshape(-1, 2, 2) * pixel_map.scale + pixel_map.offset
    corners = np.clip(corners, pixel_map.target[:2], pixel_map.target[2:])
    return corners.reshape(-1, 4), labels[kept]  # [m, 2, 2] -> [m, 4]


def mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrors boxes [M, 4] left-right in a picture of that width."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def stays(boxes: np.ndarray, window: Window, min_visible: float | None = None) -> np.ndarray:
    """Returns bool [M]: by the centre rule, or by the share rule where min_visible is given."""
    if min_visible is None:
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        return ((centers >= window[:2]) & (centers < window[2:])).all(axis=1)
    shown = overlaps(boxes, np.array([window]))[:, 0]
    return _shows_enough(shown, areas(boxes), min_visible)


def _shows_enough(shown: np.ndarray, whole: np.ndarray, min_visible: float) -> np.ndarray:
    """Returns bool [M] by the share rule on areas [M]; it allows for rounding."""
    return (shown > 0) & (shown >= (min_visible - 1e-9) * whole)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas [M] of boxes [M, 4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the areas [M, K] that boxes [M, 4] have in common with others [K, 4]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = np.maximum(high - low, 0)  # [M, K, xy]
    return sides[..., 0] * sides[..., 1]


def cut(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Cuts boxes [M, 4] to a window."""
    return np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Returns the corners [M, 4, 2] of boxes [M, 4], going round."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def boxes_around(corners: np.ndarray) -> np.ndarray:
    """Returns the smallest boxes [M, 4] around corners [M, n, 2]."""
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def cut_polygons(polygons: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Cuts convex polygons [M, n, 2] to a window.

    Returns:
        (boxes [M, 4] around what is left, areas [M] of it); nothing left: zeros.
    """
    boxes, shown = boxes_around(polygons), _polygon_areas(polygons)
    outside = (boxes[:, :2] < window[:2]).any(axis=1) | (boxes[:, 2:] > window[2:]).any(axis=1)
    for i in np.flatnonzero(outside):
        polygon = _cut_polygon(polygons[i].tolist(), window)
        left = np.array(polygon or [[0.0, 0.0]])[None]  # [1, n, 2]
        boxes[i], shown[i] = boxes_around(left)[0], _polygon_areas(left)[0]
    return boxes, shown


def _polygon_areas(polygons: np.ndarray) -> np.ndarray:
    """Returns the areas [M] of polygons [M, n, 2], by the shoelace formula."""
    following = np.roll(polygons, -1, axis=1)
    cross = polygons[..., 0] * following[..., 1] - polygons[..., 1] * following[..., 0]
    return np.abs(cross.sum(axis=1)) / 2


def _cut_polygon(polygon: list[list[float]], window: Window) -> list[list[float]]:
    """Cuts a convex polygon at each side of a window in turn (Sutherland and Hodgman)."""
    for axis, limit, sign in ((0, 0, 1), (1, 1, 1), (0, 2, -1), (1, 3, -1)):
        edge, kept = window[limit], []
        for start, end in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            before, after = sign * (start[axis] - edge), sign * (end[axis] - edge)
            if before >= 0:
                kept.append(start)
            if before * after < 0:
                t = before / (before - after)
                point = [start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])]
                point[axis] = edge
                kept.append(point)
        polygon = kept
    return polygon
