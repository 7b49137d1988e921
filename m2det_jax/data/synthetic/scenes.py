"""Scenes of the synthetic data set: objects with exact boxes on a cluttered background.

Letters: H, W. image size, h, w size of an object in pixels. Sizes and shapes are (height, width);
boxes are (x1, y1, x2, y2) in pixels with exclusive x2, y2; colours are RGB in 0..255.
"""

import colorsys
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from m2det_jax.data.synthetic.shapes import CLASS_NAMES, MIN_SIDE, object_masks

MIN_VISIBLE = 0.6
MIN_CONTRAST = 48.0
MIN_CONTRAST_SHARE = 0.95

_TRIALS = 30  # positions tried for an object before it is left out
_OVERLAP_SHARE = 0.14  # of the objects are put across another one, which makes two overlapping each
_CLUTTER = 24  # grey levels of patches and lines, well below MIN_CONTRAST
_BAND = 4  # pixels around an object that its colour must stand out from


@dataclass
class Scene:
    """An image while objects are painted onto it; lists have one entry an object, in that order.

    Attributes:
        pixels: float32 [H, W, 3] in 0..255.
        owner: int32 [H, W], the topmost object; -1: background.
        boxes: (x1, y1, x2, y2).
        labels: positions in CLASS_NAMES.
        areas: pixels painted.
    """

    pixels: np.ndarray
    owner: np.ndarray
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)

    def visible(self) -> np.ndarray:
        """Returns the share of each object's pixels that no later object covers, float [n]."""
        return _pixels_owned(self.owner, len(self.areas)) / np.array(self.areas)

    def image(self) -> Image.Image:
        """Returns the picture, RGB."""
        return Image.fromarray(np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8))


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Returns the grey level [...] of RGB [..., 3], both 0..255 (weights of ITU-R BT.601)."""
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def _pixels_owned(owner: np.ndarray, num_objects: int) -> np.ndarray:
    return np.bincount(owner.ravel() + 1, minlength=num_objects + 1)[1:]


def _random_colour(
    rng: np.random.Generator, value: tuple[float, float], saturation: float
) -> np.ndarray:
    """Returns an RGB colour float32 [3], 0..255: any hue, value in `value`, up to `saturation`."""
    hsv = rng.random(), rng.random() * saturation, rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], step: float) -> np.ndarray:
    """Returns noise float32 [H, W, 3] in about -1..1 with bumps `step` pixels wide."""
    grid = rng.uniform(18, 238, (int(size[0] / step) + 2, int(size[1] / step) + 2, 3))
    wide = Image.fromarray(grid.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return (np.asarray(wide, np.float32) - 128) / 110


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Returns a background float32 [H, W, 3]: clouds of colour, patches, lines and grain."""
    height, width = size
    clutter = Image.new("L", (width, height), 128)
    pen = ImageDraw.Draw(clutter)
    for _ in range(rng.integers(2, 6)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 10)))
        reach = rng.uniform(0.1, 0.45) * height * rng.uniform(0.5, 1.3, angles.size)
        ray = np.stack([np.cos(angles), np.sin(angles)], -1)
        corners = rng.uniform((0, 0), (width, height)) + ray * reach[:, None]
        pen.polygon([tuple(p) for p in corners], fill=int(128 + rng.uniform(-_CLUTTER, _CLUTTER)))
    for _ in range(rng.integers(3, 10)):
        points = rng.uniform(-0.1, 1.1, (rng.integers(2, 5), 2)) * (width, height)
        shade = int(128 + rng.uniform(-_CLUTTER, _CLUTTER))
        pen.line([tuple(p) for p in points], shade, width=int(rng.integers(1, 4)), joint="curve")
    pixels = _random_colour(rng, (0.3, 0.85), 0.6) + 20 * _smooth_noise(rng, size, max(size) / 4)
    pixels += np.asarray(clutter, np.float32)[..., None] - 128
    return pixels + 7 * _smooth_noise(rng, size, 4)


def _contrasting_colour(rng: np.random.Generator, around: np.ndarray) -> np.ndarray | None:
    """Returns a colour float32 [3] that contrasts with grey levels `around`; None: none found."""
    for _ in range(20):
        colour = _random_colour(rng, (0.05, 1.0), 0.95)
        if np.mean(abs(around - luminance(colour)) >= MIN_CONTRAST) >= MIN_CONTRAST_SHARE:
            return colour
    return None


def _random_corner(
    rng: np.random.Generator, scene: Scene, shape: tuple[int, int], overlap: bool
) -> tuple[int, int] | None:
    """Returns a corner (x, y) for a `shape`, clear of all boxes or across one; None: not found."""
    (height, width), (h, w) = scene.owner.shape, shape
    if not overlap:
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        beside = (x > b[2] or x + w < b[0] or y > b[3] or y + h < b[1] for b in scene.boxes)
        return (x, y) if all(beside) else None
    x1, y1, x2, y2 = scene.boxes[rng.integers(len(scene.boxes))]
    x, y = int(rng.integers(x1 - w + 1, x2)), int(rng.integers(y1 - h + 1, y2))
    common = (min(x + w, x2) - max(x, x1)) * (min(y + h, y2) - max(y, y1))
    inside = 0 <= x <= width - w and 0 <= y <= height - h
    return (x, y) if inside and common >= 0.1 * min(h * w, (x2 - x1) * (y2 - y1)) else None


def _paint(rng: np.random.Generator, colour: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns paint float32 [h, w, 3]: one colour, a contrasting one where `second` [h, w] is 1."""
    other = _contrasting_colour(rng, luminance(colour))
    if other is None:  # black or white always keeps the rule
        other = np.full(3, 255 if luminance(colour) < 128 else 0, np.float32)
    # A slope of light, at most 5 % up or down, so that large objects are not flat.
    slope_y, slope_x = rng.uniform(-0.025, 0.025, 2)
    h, w = second.shape
    light = 1 + slope_y * np.linspace(-1, 1, h)[:, None] + slope_x * np.linspace(-1, 1, w)
    paint = colour + second[..., None] * (other - colour)
    return (paint * light[..., None]).astype(np.float32)


def _try_place(
    rng: np.random.Generator,
    scene: Scene,
    label: int,
    masks: tuple[np.ndarray, np.ndarray],
    overlap: bool,
) -> bool:
    """Paints an object if a position and a colour keep the rules; returns whether it did."""
    alpha, second = masks
    h, w = alpha.shape
    corner = _random_corner(rng, scene, alpha.shape, overlap)
    if corner is None:
        return False
    x, y = corner
    window = np.s_[y : y + h, x : x + w]
    owner = scene.owner.copy()
    owner[window][alpha > 0] = len(scene.areas)
    if np.any(_pixels_owned(owner, len(scene.areas))[:-1] < MIN_VISIBLE * np.array(scene.areas)):
        return False
    near = np.s_[max(y - _BAND, 0) : y + h + _BAND, max(x - _BAND, 0) : x + w + _BAND]
    around = scene.pixels[near][owner[near] != len(scene.areas)]  # [pixels, 3]
    colour = _contrasting_colour(rng, luminance(around))
    if colour is None:
        return False
    scene.pixels[window] += alpha[..., None] * (_paint(rng, colour, second) - scene.pixels[window])
    scene.owner = owner
    scene.boxes.append((x, y, x + w, y + h))
    scene.labels.append(label)
    scene.areas.append(int(np.count_nonzero(alpha)))
    return True


def draw_scene(rng: np.random.Generator, size: tuple[int, int], num_objects: int) -> Scene:
    """Draws an image of `size` (each side >= 4 MIN_SIDE) with up to `num_objects` objects.

    Shorter sides of their boxes: uniform from MIN_SIDE to half the image's shorter side, largest
    painted first. An object without a fitting position or colour is left out.
    """
    scene = Scene(_background(rng, size), np.full(size, -1, np.int32))
    limit = size[0] // 2, size[1] // 2
    largest = min(limit)
    sides = rng.integers(MIN_SIDE, largest + 1, num_objects)
    for side in np.sort(sides)[::-1]:
        label = int(rng.integers(len(CLASS_NAMES)))
        overlap = bool(scene.boxes) and rng.random() < _OVERLAP_SHARE
        masks = object_masks(rng, CLASS_NAMES[label], int(side), limit)
        for _ in range(_TRIALS):
            if _try_place(rng, scene, label, masks, overlap):
                break
    return scene
