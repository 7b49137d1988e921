"""Images that a user gives, as upright RGB pictures: files, URLs, PIL images and arrays.

One rule of colours and orientation serves all of them, that of `data.images`. Files, also those in
memory, go the road that evaluation goes: a large JPEG is decoded at a fraction of its size. All
else is decoded whole.
"""

import contextlib
import dataclasses
import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from m2det_jax.data import ResizeSettings, load_image, read_size
from m2det_jax.data.augment.drawing import (
    PixelMap,
    Window,
    draw_image,
    lay_out,
    map_image,
    map_window,
    resize_part,
)
from m2det_jax.data.images import BROKEN_FILE, ImageContent, UnreadableImage, upright_rgb
from m2det_jax.errors import InputError
from m2det_jax.inference.urls import download, is_url

# A path or URL, a PIL image, or a uint8 array: [H, W, 3] RGB, [H, W] or [H, W, 1] grey,
# [H, W, 4] RGBA.
ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray

EXPECTED = (
    "a path, an http or https URL, a PIL image or a uint8 array ([H, W, 3] RGB, [H, W] grey, "
    "[H, W, 4] RGBA)"
)
_CHANNELS = (1, 3, 4)
# The same image may be given twice, and its file is then read by two threads.
_LOADING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of the user's.

    Attributes:
        name: path, URL or file name; "": it has none.
        size: (width, height) of the upright picture.
        load: decodes it (again) to an upright RGB picture.
    """

    name: str
    size: tuple[int, int]
    load: Callable[[], Image.Image]


@dataclasses.dataclass(frozen=True)
class View:
    """A picture at an input size of the network.

    Attributes:
        image: uint8 RGB [H, W, 3].
        scale, offset: float32 [2], x and y; a point of the picture is at point * scale + offset.
    """

    image: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


def one_by_one(images: Any) -> Iterable[Any] | None:
    """Returns the images of several: a list or tuple, an array [B, H, W, C], or an iterator.

    Returns:
        A sequence; or an iterator, for what gives its images one after the other; None: it is a
        single image, or none at all.
    """
    if isinstance(images, str | os.PathLike | bytes | Image.Image | Mapping):
        return None
    if _is_array(images):
        return images if np.ndim(images) == 4 else None
    if isinstance(images, Sequence):
        return images
    return iter(images) if isinstance(images, Iterable) else None


def look_at(
    image: ImageLike | ImageContent, resizes: Sequence[ResizeSettings], where: str = "image"
) -> tuple[Picture, list[View]]:
    """Decodes an image once, and brings it to one or more input sizes.

    Args:
        image: as the user gives it; or the content of a file, which goes the road of files.
        resizes: input sizes of the network, and how an image is brought to them.
        where: stands for the name of an image without one, in errors.

    Raises:
        InputError: if it is no image, or cannot be read; says what was expected and got.
    """
    if isinstance(image, ImageContent):
        picture = Picture("", read_size(image), functools.partial(load_image, image))
        draw = functools.partial(draw_image, image, picture.size)
    elif isinstance(image, str | os.PathLike) and not is_url(str(image)):
        path = _path(image)
        picture = Picture(path, read_size(path), functools.partial(load_image, path))
        draw = functools.partial(draw_image, path, picture.size)
    else:
        name, load = _opened(image, where)
        pixels = load()
        picture = Picture(name, pixels.size, load)
        draw = functools.partial(_draw_pixels, pixels)
    maps = (map_image(picture.size, resize) for resize in resizes)
    return picture, list(_views(maps, resizes, draw))


def look_at_window(
    pixels: Image.Image, window: Window, resizes: Sequence[ResizeSettings]
) -> list[View]:
    """Brings a part of a decoded picture to one or more input sizes; it may reach beyond it.

    Args:
        pixels: upright and RGB.
        window: (left, top, right, bottom), pixels.
        resizes: input sizes of the network, and how the part is brought to them.
    """
    maps = (map_window(pixels.size, window, resize) for resize in resizes)
    return list(_views(maps, resizes, functools.partial(_draw_pixels, pixels)))


def _views(
    maps: Iterable[PixelMap],
    resizes: Sequence[ResizeSettings],
    draw: Callable[[PixelMap, ResizeSettings], np.ndarray],
) -> Iterator[View]:
    for pixel_map, resize in zip(maps, resizes, strict=True):
        scale, offset = pixel_map.scale.astype(np.float32), pixel_map.offset.astype(np.float32)
        yield View(draw(pixel_map, resize), scale, offset)


def _draw_pixels(picture: Image.Image, pixel_map: PixelMap, settings: ResizeSettings) -> np.ndarray:
    """As `drawing.draw_image`, of a picture that is in memory."""
    return lay_out([resize_part(picture, pixel_map, 1)], settings)


def _path(image: str | os.PathLike) -> str:
    path = os.fspath(image)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if os.path.isdir(path):
        raise InputError(
            f"{path}: it is a folder; give its images, such as pathlib.Path({path!r}).glob('*.jpg')"
        )
    if "://" in path and not os.path.exists(path):
        raise InputError(f"{path}: of URLs, http and https are read")
    return path


def _opened(image: Any, where: str) -> tuple[str, Callable[[], Image.Image]]:
    """Returns (name, what decodes it) of an image that is no file."""
    if isinstance(image, str):
        return image, functools.partial(_from_bytes, download(image), image)
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "") or "")
        return name, functools.partial(_from_pil, image, name or where)
    if _is_array(image):
        return "", functools.partial(_from_array, image, where)
    raise InputError(f"{where}: expected {EXPECTED}, got {_kind(image)}")


def _from_bytes(content: bytes, url: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return upright_rgb(image, url)
    except UnreadableImage:
        raise
    except BROKEN_FILE as error:
        raise UnreadableImage(url, error) from error


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    still_in_a_file = getattr(image, "fp", None) is not None
    with _LOADING if still_in_a_file else contextlib.nullcontext():
        return upright_rgb(image, name)


def _from_array(image: Any, where: str) -> Image.Image:
    array = np.asarray(image)
    shape = " x ".join(map(str, array.shape)) or "no dimensions"
    got = f"{where}: expected uint8 [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA, got "
    got += f"{array.dtype} {shape}"
    grey = array.ndim == 2
    if not (grey or array.ndim == 3) or 0 in array.shape:
        raise InputError(got)
    if array.dtype != np.uint8:
        raise InputError(f"{got}; {_to_uint8(array)}")
    if not grey and array.shape[2] not in _CHANNELS:
        first = array.shape[0] in _CHANNELS
        raise InputError(f"{got}{'; give image.transpose(1, 2, 0)' if first else ''}")
    if not grey and array.shape[2] == 1:
        array = array[:, :, 0]
    return upright_rgb(Image.fromarray(array), where)


def _to_uint8(array: np.ndarray) -> str:
    """What to do with an array of another type."""
    if array.dtype.kind == "f":
        return "convert it, such as (255 * image).round().astype(np.uint8) where 1.0 is white"
    if array.dtype.kind == "b":
        return "give 255 * image.astype(np.uint8)"
    return "scale it to 0..255, and give image.astype(np.uint8)"


def _is_array(image: Any) -> bool:
    """Whether it is an array of numpy, jax or another library that numpy understands."""
    return hasattr(image, "__array__") and not isinstance(image, Image.Image)


def _kind(image: Any) -> str:
    if isinstance(image, bytes):
        return "bytes; give PIL.Image.open(io.BytesIO(content))"
    return f"{type(image).__name__} ({image!r:.60})"
