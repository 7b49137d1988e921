"""Drawing: from image files to the pixels of a network input.

Scaling and cutting are composed before a pixel is touched: a decoded image goes through a single
antialiased bilinear resize onto a canvas of the fill colour. Evaluation calls `map_image` and
`draw_image`; the augmentation ends in the same functions.

Pillow's bilinear `Image.transform` looks at 2 x 2 pixels of its source, whatever the scale, and so
would alias when an image gets smaller. Where an image is turned or sheared it is therefore brought
to its final scale first, by an antialiased resize along its own axes, and `transform` only turns
and shears it. Where an image gets larger there is nothing to antialias, and `transform` does all.

Windows and rectangles are (left, top, right, bottom); sizes in settings are (height, width), sizes
of images (width, height). Matrices are float64 [2, 3].
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from m2det_jax.data.augment.settings import ResizeSettings
from m2det_jax.data.images import ImageSource, UnreadableImage, load_image, reduction

Window: TypeAlias = tuple[float, float, float, float]
Colors: TypeAlias = tuple[float, ...]  # a 3 x 4 matrix for Pillow's convert, row by row
# A JPEG is decoded at a fraction of its size if that is still this many times the size needed:
# antialiasing hides the difference.
_DECODE_MARGIN = 2


@dataclasses.dataclass(frozen=True)
class PixelMap:
    """A map of an image onto the network input, by scale and offset.

    Attributes:
        source: window of the upright image that is shown, pixels, inside the image.
        target: rectangle of the network input that it fills, whole pixels.
    """

    source: Window
    target: tuple[int, int, int, int]

    @property
    def scale(self) -> np.ndarray:
        """Network pixels per image pixel, float64 [2], x and y."""
        source, target = np.array(self.source), np.array(self.target)
        return (target[2:] - target[:2]) / (source[2:] - source[:2])

    @property
    def offset(self) -> np.ndarray:
        """The position of the image's origin, float64 [2], x and y."""
        return np.array(self.target[:2]) - np.array(self.source[:2]) * self.scale


class Piece(NamedTuple):
    """A picture, where its corner (x, y) goes, and which of its pixels count (None: all)."""

    picture: Image.Image
    corner: tuple[int, int]
    mask: Image.Image | None = None


def scale_to_fit(window: Window, settings: ResizeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Returns how a window of any plane is laid onto the network input.

    Returns:
        (scale, margin), float64 [2], x and y: input = (point - window's corner) * scale + margin.
    """
    height, width = settings.image_size
    left, top, right, bottom = window
    scale = np.array([width / (right - left), height / (bottom - top)])
    if settings.mode == "letterbox":
        scale = np.full(2, scale.min())
    return scale, (np.array([width, height]) - scale * (right - left, bottom - top)) / 2


def map_image(size: tuple[int, int], settings: ResizeSettings) -> PixelMap:
    """Returns the map of a whole image of (width, height) onto the network input."""
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    return map_window(size, whole, settings)


def map_window(size: tuple[int, int], window: Window, settings: ResizeSettings) -> PixelMap:
    """Returns the map of a window of an image's plane, which may reach beyond the image.

    The image's part of it starts and ends on whole pixels of the input, so that the map is moved
    by less than a pixel; boxes follow exactly the same map.

    Raises:
        ValueError: if the window shows nothing of the image.
    """
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    found = map_part(whole, (1.0, 1.0), (0.0, 0.0), window, settings)
    if found is None:
        raise ValueError(f"window {window} shows nothing of an image of {size[0]} x {size[1]}")
    return found


def map_part(
    part: Window,
    part_scale: tuple[float, float],
    part_offset: tuple[float, float],
    window: Window,
    settings: ResizeSettings,
) -> PixelMap | None:
    """Returns the map of a part of an image, which lies at image * part_scale + part_offset.

    As `map_window` otherwise. None: the window shows nothing of the part.
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
    x1, y1, x2, y2 = (float(edge) for edge in source)
    target = int(low[0]), int(low[1]), int(high[0]), int(high[1])
    return PixelMap(source=(x1, y1, x2, y2), target=target)


def draw_image(
    source: ImageSource, size: tuple[int, int], pixel_map: PixelMap, settings: ResizeSettings
) -> np.ndarray:
    """Decodes an image file and draws it by a map: uint8 RGB [H, W, 3].

    Args:
        size: (width, height) that the file is known to have.

    Raises:
        ValueError: as `decode`.
    """
    image, factor = decode(source, size, pixel_map.scale)
    return lay_out([resize_part(image, pixel_map, factor)], settings)


def decode(
    source: ImageSource, size: tuple[int, int], scale: Sequence[float] | np.ndarray
) -> tuple[Image.Image, int]:
    """Decodes an image that will be shown at a scale.

    Args:
        size: (width, height) that the file is known to have.
        scale: x and y, network pixels per image pixel.

    Returns:
        (an RGB picture, the factor 1, 2, 4 or 8 by which it is reduced).

    Raises:
        ValueError: if the file cannot be decoded, or has another size by now; the text names it.
    """
    width, height = (
        math.ceil(_DECODE_MARGIN * side * share) for side, share in zip(size, scale, strict=True)
    )
    needed = (width, height)
    image = load_image(source, min_scale_size=needed)
    try:
        return image, reduction(size, image.size)
    except ValueError as error:
        what = f"it is not what it was when the data set was read ({error})"
        raise UnreadableImage(source, ValueError(what)) from error


def resize_part(
    image: Image.Image, pixel_map: PixelMap, factor: int, colors: Colors | None = None
) -> Piece:
    """Resizes the source of a map, of an image decoded at 1/factor, to the size of its target."""
    left, top, right, bottom = pixel_map.target
    x1, y1, x2, y2 = (edge / factor for edge in pixel_map.source)
    wanted = (right - left, bottom - top)
    picture = image.resize(wanted, Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))
    return Piece(picture if colors is None else picture.convert("RGB", colors), (left, top))


def warp(
    image: Image.Image,
    source: Window,
    factor: int,
    matrix: np.ndarray,
    shown: Window,
    colors: Colors | None = None,
) -> Piece | None:
    """Draws a part of an image through an affine map; None if nothing of it is shown.

    Args:
        image: RGB, decoded at 1/factor of its size.
        source: the part, pixels of the full-size image.
        matrix: from these to pixels of the network input.
        shown: rectangle of the network input, whole pixels, that it may cover.
    """
    corners = _corners(source) @ matrix[:, :2].T + matrix[:, 2]
    (x1, y1), (x2, y2) = corners.min(axis=1)[0].tolist(), corners.max(axis=1)[0].tolist()
    left, top = max(math.floor(x1), int(shown[0])), max(math.floor(y1), int(shown[1]))
    right, bottom = min(math.ceil(x2), int(shown[2])), min(math.ceil(y2), int(shown[3]))
    if right <= left or bottom <= top:
        return None
    sides = np.array(source[2:]) - source[:2]
    scale = np.minimum(np.hypot(matrix[0, :2], matrix[1, :2]), 1)
    size_x, size_y = (max(1, round(float(side))) for side in sides * scale)
    size = (size_x, size_y)
    x1, y1, x2, y2 = (edge / factor for edge in source)
    picture = image.resize(size, Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))
    if colors is not None:
        picture = picture.convert("RGB", colors)
    # Pillow asks for the way back: from the piece's pixels to those of `picture`.
    back = np.linalg.inv(matrix[:, :2])
    start = back @ (np.array([left, top]) - matrix[:, 2]) - source[:2]
    ratio = np.array(size) / sides
    data = np.concatenate([back, start[:, None]], axis=1) * ratio[:, None]
    wanted, how = (right - left, bottom - top), Image.Transform.AFFINE
    coefficients = tuple(data.ravel().tolist())
    # Both in the same way, or the edge of the mask would be a pixel off.
    mask, picture = (
        image.transform(wanted, how, coefficients, Image.Resampling.BILINEAR)
        for image in (Image.new("L", size, 255), picture)
    )
    return Piece(picture, (left, top), mask)


def _corners(window: Window) -> np.ndarray:
    """Returns the corners [1, 4, 2] of a window, going round."""
    left, top, right, bottom = window
    return np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]])


def lay_out(
    pieces: Sequence[Piece], settings: ResizeSettings, *, mirror: bool = False
) -> np.ndarray:
    """Lays pieces onto the fill colour, the last on top: uint8 RGB [H, W, 3]."""
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
