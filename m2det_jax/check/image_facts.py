"""Facts about image files: each is decoded in full, hashed, and described.

Sizes are (width, height), as in Pillow.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence

from PIL import Image

from m2det_jax.data.images import BROKEN_FILE, load_image, orientation_of, read_size

_LARGE = 2**24  # pixels


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """One image file. Where `problem` is not "", the fields after `message` mean nothing.

    Attributes:
        problem: "" for a file that training can read, else "missing-image", "empty-image",
            "truncated-image", "float-image" or "unreadable-image".
        message: the error of `load_image`.
        format: Pillow's name, such as "JPEG".
        mode: Pillow's mode of the stored pixels, or "RGB;16" for 16-bit colour.
        transparent: has an alpha channel or a transparent colour.
        orientation: EXIF, 1..8.
        frames: 1, or more for an animation.
        size: of the upright picture.
        file_hash: of the bytes. "" where the file cannot be opened.
        pixel_hash: of the size and the upright RGB pixels.
    """

    path: str
    problem: str = ""
    message: str = ""
    format: str = ""
    mode: str = ""
    transparent: bool = False
    orientation: int = 1
    frames: int = 1
    size: tuple[int, int] = (0, 0)
    file_hash: str = ""
    pixel_hash: str = ""


def read_facts(path: str) -> ImageFacts:
    """Decodes a file as training does, but at full size; never raises for what is in it."""
    try:
        picture = load_image(path)
    except ValueError as error:
        return ImageFacts(path, _problem(path, error), str(error))
    with open(path, "rb") as file:
        file_hash = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    with Image.open(path) as image:
        return ImageFacts(
            path,
            format=image.format or "",
            mode="RGB;16" if _is_deep_colour(image) else image.mode,
            transparent=image.has_transparency_data,
            orientation=orientation_of(image),
            frames=_count_frames(image),
            size=picture.size,
            file_hash=file_hash,
            pixel_hash=_pixel_hash(picture),
        )


def _pixel_hash(picture: Image.Image) -> str:
    digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    rows = max(1, _LARGE // picture.width)  # in strips: tobytes is one more copy
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        digest.update(strip.tobytes())
    return digest.hexdigest()


def iterate_facts(paths: Sequence[str], *, num_threads: int | None = None) -> Iterator[ImageFacts]:
    """Yields the facts of every file in order, read by as many threads as there are processors.

    Decoding and hashing leave the interpreter's lock, so that threads are as good as processes.
    """
    num_threads = num_threads or os.cpu_count() or 1
    # A picture of the largest size takes more than a gigabyte: only one of these at a time.
    only_one = threading.Lock()

    def read(path: str) -> ImageFacts:
        with only_one if _is_large(path) else contextlib.nullcontext():
            return read_facts(path)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(read, paths)


def _is_large(path: str) -> bool:
    try:
        width, height = read_size(path)
    except ValueError:
        return False
    return width * height > _LARGE


def _count_frames(image: Image.Image) -> int:
    try:
        # A JPEG's second frame (MPO) is a camera's preview or its other eye, not an animation.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except BROKEN_FILE:
        return 1  # a later frame is damaged, and only the first one is ever taken


def _is_deep_colour(image: Image.Image) -> bool:
    # Pillow gives the high bytes as RGB; only the decoder's raw mode tells.
    tiles = getattr(image, "tile", ())  # an ImageFile has them
    return image.mode.startswith("RGB") and any(";16" in str(tile[3]) for tile in tiles)


def _problem(path: str, error: ValueError) -> str:
    text = str(error)
    if isinstance(error.__cause__, FileNotFoundError):
        return "missing-image"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty-image"
    if "truncated" in text:
        return "truncated-image"
    return "float-image" if "float pixels" in text else "unreadable-image"
