"""From an image file and its boxes to a network input, at random (training) or not (evaluation).

Geometry is one axis-aligned map per sample: expanding, cropping, scaling and mirroring are
composed before a pixel is touched, and the decoded image goes through a single antialiased
bilinear resize onto a canvas of the fill colour.

Boxes are xyxy pixels with exclusive x2, y2; windows and rectangles are (left, top, right, bottom);
sizes in settings are (height, width), sizes of images (width, height). M boxes of one image.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from m2det_jax.data.color import color_matrix
from m2det_jax.data.crop import crop_window
from m2det_jax.data.images import load_image, reduction
from m2det_jax.data.settings import AugmentSettings, ResizeSettings

# A JPEG is decoded at a fraction of its size where that still is this many times the size needed:
# antialiasing hides the difference.
_DECODE_MARGIN = 2


@dataclasses.dataclass(frozen=True)
class Placement:
    """The map of an image onto the network input.

    Attributes:
        source: window of the upright image that is shown, pixels, inside the image.
        target: rectangle of the network input that it fills, whole pixels.
        mirror: the finished input is flipped left-right.
    """

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]
    mirror: bool = False

    @property
    def scale(self) -> np.ndarray:
        """float64 [2], x and y: network pixels per image pixel, before mirroring."""
        source, target = np.array(self.source), np.array(self.target)
        return (target[2:] - target[:2]) / (source[2:] - source[:2])

    @property
    def offset(self) -> np.ndarray:
        """float64 [2], x and y: where the image's origin falls, before mirroring."""
        return np.array(self.target[:2]) - np.array(self.source[:2]) * self.scale


def place(
    size: tuple[int, int],
    window: tuple[float, float, float, float],
    settings: ResizeSettings,
    *,
    mirror: bool = False,
) -> Placement:
    """Lays a window of an image's plane, which may reach beyond the image, onto the network input.

    The image's part of it starts and ends on whole pixels of the input, so that the map is moved
    by less than a pixel; boxes follow exactly the same map.
    """
    height, width = settings.image_size
    left, top, right, bottom = window
    scale = np.array([width / (right - left), height / (bottom - top)])
    if settings.mode == "letterbox":
        scale = np.full(2, scale.min())
    margin = (np.array([width, height]) - scale * (right - left, bottom - top)) / 2
    source = np.array([max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])])
    exact = (source.reshape(2, 2) - (left, top)) * scale + margin  # [corner, xy]
    low = np.minimum(np.rint(exact[0]), (width - 1, height - 1))
    high = np.maximum(np.rint(exact[1]), low + 1)
    target = tuple(int(edge) for edge in (*low, *high))
    return Placement(source=tuple(source.tolist()), target=target, mirror=mirror)


def place_whole(size: tuple[int, int], settings: ResizeSettings) -> Placement:
    """Lays the whole image onto the network input, as evaluation does."""
    return place(size, (0, 0, *size), settings)


def place_at_random(
    size: tuple[int, int], boxes: np.ndarray, settings: AugmentSettings, rng: np.random.Generator
) -> Placement:
    """Draws expansion, crop and mirroring; boxes [M, 4] in image pixels guide the crop."""
    width, height = size
    window = (0.0, 0.0, float(width), float(height))
    if rng.random() < settings.expand_probability:
        ratio = rng.uniform(1, settings.expand_max)
        left, top = rng.uniform(0, 1, 2) * (ratio - 1) * size
        window = (-left, -top, width * ratio - left, height * ratio - top)
    if rng.random() < settings.crop_probability:
        window = crop_window(size, window, boxes, settings.crop_min_scale, rng)
    mirror = bool(rng.random() < settings.flip_probability)
    return place(size, window, settings, mirror=mirror)


def map_boxes(
    boxes: np.ndarray, labels: np.ndarray, placement: Placement, settings: ResizeSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Takes boxes [M, 4] of the image to the network input: float32 [m, 4] and their labels.

    A box stays, cut to the picture, if its centre lies in the window that is shown; nothing else
    drops a box.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = placement.source[:2], placement.source[2:]
    inside = ((centers >= low) & (centers < high)).all(axis=1)
    corners = boxes[inside].reshape(-1, 2, 2) * placement.scale + placement.offset
    corners = np.clip(corners, placement.target[:2], placement.target[2:])
    mapped = corners.reshape(-1, 4)  # [m, 2, 2] -> [m, 4]
    if placement.mirror:
        width = settings.image_size[1]
        mapped = np.stack(
            [width - mapped[:, 2], mapped[:, 1], width - mapped[:, 0], mapped[:, 3]], 1
        )
    return mapped.astype(np.float32), labels[inside]


def render(
    path: str,
    size: tuple[int, int],
    placement: Placement,
    settings: ResizeSettings,
    colors: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Decodes an image file and draws it by a placement: uint8 RGB [H, W, 3].

    Args:
        size: (width, height) that the file is known to have.
        colors: 3 x 4 matrix for Pillow's convert, or None.

    Raises:
        ValueError: the file cannot be decoded, or has another size by now; the text names it.
    """
    needed = tuple(
        math.ceil(_DECODE_MARGIN * side * scale)
        for side, scale in zip(size, placement.scale, strict=True)
    )
    image = load_image(path, min_scale_size=needed)
    try:
        factor = reduction(size, image.size)
    except ValueError as error:
        raise ValueError(
            f"{path} is not what it was when the data set was read: {error}"
        ) from error
    return draw(image, placement, settings, colors, factor=factor)


def draw(
    image: Image.Image,
    placement: Placement,
    settings: ResizeSettings,
    colors: tuple[float, ...] | None = None,
    *,
    factor: int = 1,
) -> np.ndarray:
    """Draws an RGB image, decoded at 1/factor of its size, by a placement: uint8 RGB [H, W, 3]."""
    left, top, right, bottom = placement.target
    box = [edge / factor for edge in placement.source]
    picture = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
    if colors is not None:
        picture = picture.convert("RGB", colors)
    height, width = settings.image_size
    if picture.size != (width, height):
        canvas = Image.new("RGB", (width, height), settings.fill)
        canvas.paste(picture, (left, top))
        picture = canvas
    if placement.mirror:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


def augment(
    path: str,
    size: tuple[int, int],
    boxes: np.ndarray,
    labels: np.ndarray,
    settings: AugmentSettings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes a training sample: (image uint8 [H, W, 3], boxes float32 [m, 4], labels [m])."""
    if settings.enabled:
        placement = place_at_random(size, boxes, settings, rng)
        colors = color_matrix(settings, rng)
    else:
        placement, colors = place_whole(size, settings), None
    image = render(path, size, placement, settings, colors)
    return image, *map_boxes(boxes, labels, placement, settings)
