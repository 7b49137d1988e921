"""From an image file and its boxes to a network input, by axis-aligned maps.

Scaling and cutting are composed before a pixel is touched: the decoded image goes through a single
antialiased bilinear resize onto a canvas of the fill colour. What is drawn at random (canvas.py and
the modules it names) ends in these functions; evaluation calls `place_whole` and `render`.

Boxes are xyxy pixels with exclusive x2, y2; windows and rectangles are (left, top, right, bottom);
sizes in settings are (height, width), sizes of images (width, height). M boxes of one image.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from m2det_jax.data.augment.box_rules import Window, stays
from m2det_jax.data.augment.settings import ResizeSettings
from m2det_jax.data.images import UnreadableImage, load_image, reduction

Colors: TypeAlias = tuple[float, ...]  # a 3 x 4 matrix for Pillow's convert, row by row
# A JPEG is decoded at a fraction of its size where that still is this many times the size needed:
# antialiasing hides the difference.
_DECODE_MARGIN = 2


@dataclasses.dataclass(frozen=True)
class Placement:
    """The map of an image onto the network input.

    Attributes:
        source: window of the upright image that is shown, pixels, inside the image.
        target: rectangle of the network input that it fills, whole pixels.
    """

    source: Window
    target: tuple[int, int, int, int]

    @property
    def scale(self) -> np.ndarray:
        """float64 [2], x and y: network pixels per image pixel."""
        source, target = np.array(self.source), np.array(self.target)
        return (target[2:] - target[:2]) / (source[2:] - source[:2])

    @property
    def offset(self) -> np.ndarray:
        """float64 [2], x and y: where the image's origin falls."""
        return np.array(self.target[:2]) - np.array(self.source[:2]) * self.scale


class Piece(NamedTuple):
    """A picture, where its corner (x, y) goes, and which of its pixels count (None: all)."""

    picture: Image.Image
    corner: tuple[int, int]
    mask: Image.Image | None = None


def scale_to_fit(window: Window, settings: ResizeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scale, margin), float64 [2] x and y: input = (point - window's corner) * scale
    + margin lays a window of any plane onto the network input."""
    height, width = settings.image_size
    left, top, right, bottom = window
    scale = np.array([width / (right - left), height / (bottom - top)])
    if settings.mode == "letterbox":
        scale = np.full(2, scale.min())
    return scale, (np.array([width, height]) - scale * (right - left, bottom - top)) / 2


def place(size: tuple[int, int], window: Window, settings: ResizeSettings) -> Placement:
    """Lays a window of an image's plane, which may reach beyond the image, onto the network input.

    The image's part of it starts and ends on whole pixels of the input, so that the map is moved
    by less than a pixel; boxes follow exactly the same map.
    """
    return place_part((0, 0, *size), (1.0, 1.0), (0.0, 0.0), window, settings)


def place_part(
    part: Window,
    part_scale: tuple[float, float],
    part_offset: tuple[float, float],
    window: Window,
    settings: ResizeSettings,
) -> Placement | None:
    """As `place`, of a part of an image that lies in the plane at image * part_scale + part_offset.

    None: the window shows nothing of it.
    """
    scale, margin = scale_to_fit(window, settings)
    corner, (sx, sy), (ox, oy) = window[:2], part_scale, part_offset
    left, right = (window[0] - ox) / sx, (window[2] - ox) / sx
    top, bottom = (window[1] - oy) / sy, (window[3] - oy) / sy
    source = max(left, part[0]), max(top, part[1]), min(right, part[2]), min(bottom, part[3])
    if not (source[0] < source[2] and source[1] < source[3]):
        return None
    shown = np.array(source).reshape(2, 2) * part_scale + part_offset  # [corner, xy], plane
    exact = (shown - corner) * scale + margin
    height, width = settings.image_size
    low = np.minimum(np.rint(exact[0]), (width - 1, height - 1))
    high = np.maximum(np.rint(exact[1]), low + 1)
    target = tuple(int(edge) for edge in (*low, *high))
    return Placement(source=tuple(float(edge) for edge in source), target=target)


def place_whole(size: tuple[int, int], settings: ResizeSettings) -> Placement:
    """Lays the whole image onto the network input, as evaluation does."""
    return place(size, (0, 0, *size), settings)


def map_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    placement: Placement,
    min_visible: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Takes boxes [M, 4] of the image to the network input: float64 [m, 4] and their labels.

    A box stays, cut to the picture, by the rule of `box_rules.stays`; nothing else drops a box.
    `labels` may be anything that boxes have, [M].
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    kept = stays(boxes, placement.source, min_visible)
    corners = boxes[kept].reshape(-1, 2, 2) * placement.scale + placement.offset
    corners = np.clip(corners, placement.target[:2], placement.target[2:])
    return corners.reshape(-1, 4), labels[kept]  # [m, 2, 2] -> [m, 4]


def mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Mirrors boxes [M, 4] left-right in a picture of that width."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def render(
    path: str, size: tuple[int, int], placement: Placement, settings: ResizeSettings
) -> np.ndarray:
    """Decodes an image file and draws it by a placement: uint8 RGB [H, W, 3].

    size: (width, height) that the file is known to have. Raises ValueError as `decode`.
    """
    image, factor = decode(path, size, placement.scale)
    return lay_out([Piece(cut_out(image, placement, factor), placement.target[:2])], settings)


def decode(
    path: str, size: tuple[int, int], scale: Sequence[float] | np.ndarray
) -> tuple[Image.Image, int]:
    """Decodes an image that will be shown at `scale` (x, y): (RGB, by what it is reduced).

    size: (width, height) that the file is known to have.

    Raises:
        ValueError: the file cannot be decoded, or has another size by now; the text names it.
    """
    needed = tuple(
        math.ceil(_DECODE_MARGIN * side * share) for side, share in zip(size, scale, strict=True)
    )
    image = load_image(path, min_scale_size=needed)
    try:
        return image, reduction(size, image.size)
    except ValueError as error:
        what = f"it is not what it was when the data set was read ({error})"
        raise UnreadableImage(path, ValueError(what)) from error


def cut_out(
    image: Image.Image, placement: Placement, factor: int, colors: Colors | None = None
) -> Image.Image:
    """Resizes the placement's source, of an image decoded at 1/factor, to its target's size."""
    left, top, right, bottom = placement.target
    box = [edge / factor for edge in placement.source]
    picture = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
    return picture if colors is None else picture.convert("RGB", colors)


def lay_out(
    pieces: Sequence[Piece], settings: ResizeSettings, *, mirror: bool = False
) -> np.ndarray:
    """Lays pieces onto the fill colour, the last on top; uint8 RGB [H, W, 3], mirrored at will."""
    height, width = settings.image_size
    if len(pieces) == 1 and pieces[0].picture.size == (width, height) and not pieces[0].mask:
        picture = pieces[0].picture
    else:
        picture = Image.new("RGB", (width, height), settings.fill)
        for piece in pieces:
            picture.paste(piece.picture, piece.corner, piece.mask)
    if mirror:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)
