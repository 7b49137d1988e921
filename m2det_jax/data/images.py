"""Image files: decoded to upright RGB pictures by stated rules, and their sizes from headers.

- EXIF orientation is applied;
- grey is replicated to three channels, 1-bit becomes 0 and 255, CMYK and the other colour spaces
  are converted by Pillow;
- palette images and images with an alpha channel or a transparent colour are laid over white;
- 16-bit grey (also in Pillow's 32-bit mode I, cut to 0..65535) is scaled by 1/257, so that 65535
  becomes 255; 16-bit colour comes from Pillow as its high bytes;
- of an animation the first frame is taken;
- float images are refused: nothing says which value is white;
- PostScript (EPS) is refused: it is a program, which Pillow would have Ghostscript run.

Sizes are (width, height), as in Pillow.

Data sets have 100,000 images and more, and the size of every one is read before training starts.
So plain JPEG and PNG files are parsed here, several times quicker than by Pillow. What is not plain
(EXIF or XMP data in a JPEG, a damaged header, another format) is left to Pillow.
"""

import dataclasses
import functools
import io
import os
import re
import struct
from collections.abc import Callable
from typing import IO, TypeAlias

import numpy as np
from PIL import ExifTags, Image

from m2det_jax.data.files import open_plain
from m2det_jax.errors import InputError

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .gif .webp .tif .tiff .ppm .pgm".split())
_STRIP = 2**20  # pixels that are converted at once where each needs many bytes
_FIRST_BYTES = 512
# Start-of-frame markers; C4, C8 and CC of the range are other segments.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 100_000
_PROFILE, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs, 0.5 GB as RGB

# Formats of `ImageContent`: those of cameras, phones and browsers. Each decoder is a door.
CONTENT_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# A camera's progressive JPEG has about ten scans. Each costs time for all pixels, but few bytes.
_MOST_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # beside those within the data of a scan

# What Pillow's plugins let through on broken files, beside OSError.
BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    MemoryError,  # also for extents that a decoder cannot hold
    Image.DecompressionBombError,
)

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True, slots=True)
class ImageContent:
    """An image file in memory, from somebody who is not trusted: its format and size are limited.

    Attributes:
        content: the bytes of the file, in one of CONTENT_FORMATS.
        max_pixels: number of pixels that it may have; what has more is not decoded.
    """

    content: bytes
    max_pixels: int = MAX_PIXELS


ImageSource: TypeAlias = str | os.PathLike[str] | ImageContent


class TooManyPixels(ValueError):
    """An image whose header says that it has more pixels than are decoded."""


class UnreadableImage(InputError):
    """An image file that cannot be read; the text names it and says why, `path` is it."""

    def __init__(self, source: ImageSource, error: Exception) -> None:
        super().__init__(_explain(source, error))
        self.path = "" if isinstance(source, ImageContent) else os.fspath(source)

    def __reduce__(self) -> tuple[Callable[..., "UnreadableImage"], tuple[str, str]]:
        # Errors of worker processes are pickled; by default that calls the class with the text.
        return _unreadable, (str(self), self.path)


def _unreadable(text: str, path: str) -> UnreadableImage:
    error = UnreadableImage.__new__(UnreadableImage, text)
    error.path = path
    return error


def read_size(source: ImageSource) -> tuple[int, int]:
    """Reads (width, height) of the upright image from the header, without decoding the pixels.

    Raises:
        ValueError: if the file is missing, a directory, empty, no image, or has more than
            MAX_PIXELS; the text names the file.
    """
    try:
        size = None if isinstance(source, ImageContent) else _plain_size(source)
        if size is None:
            with _open(source) as image:
                size = _upright_size(image.size, orientation_of(image))
        _check_pixels(size)
        return size
    except BROKEN_FILE as error:
        raise UnreadableImage(source, error) from error


def count_pixels(content: ImageContent) -> int:
    """Returns the number of pixels that an image will have, from its header alone.

    Raises:
        UnreadableImage: if it is no image, or has too many pixels; its cause says which.
    """
    try:
        with _open(content) as image:
            return image.width * image.height
    except BROKEN_FILE as error:
        raise UnreadableImage(content, error) from error


def load_image(
    source: ImageSource, *, min_scale_size: tuple[int, int] | None = None
) -> Image.Image:
    """Decodes an image file to an upright RGB picture.

    Args:
        source: any file that Pillow can read, or the content of one.
        min_scale_size: (width, height) that the whole upright picture must keep. JPEG files are
            then decoded at 1/2, 1/4 or 1/8 of their size where that is no smaller, which is
            several times quicker; `reduction` tells which it was. None: full size.

    Raises:
        ValueError: as `read_size`, and if the pixels cannot be decoded; the text names the file.
    """
    try:
        with _open(source) as image:
            orientation = orientation_of(image)
            if min_scale_size is not None:
                image.draft("RGB", _upright_size(min_scale_size, orientation))
            image.load()
            picture = _upright_rgb(image, orientation)
            # The EXIF block would make the next program turn it again.
            picture.info = {}
            return picture
    except BROKEN_FILE as error:
        raise UnreadableImage(source, error) from error


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns an open image, which stays as it is, as an upright RGB picture.

    Args:
        image: of any mode; its pixels need not be loaded yet.
        name: of the image, for errors.

    Returns:
        A picture of the same pixels; the image itself where there is nothing to change.

    Raises:
        ValueError: as `load_image`.
    """
    try:
        _check_format(image)
        _check_pixels(image.size)
        image.load()  # also what stands behind the pixels of a file
        return _upright_rgb(image, _exif_orientation(image))
    except BROKEN_FILE as error:
        raise UnreadableImage(name, error) from error


def _open(source: ImageSource) -> Image.Image:
    """Opens an image, whose header may not say too much; its pixels are not decoded yet."""
    limit = MAX_PIXELS
    if isinstance(source, ImageContent):
        limit = source.max_pixels
        image = Image.open(io.BytesIO(source.content), formats=CONTENT_FORMATS)
    else:
        image = Image.open(source)
    try:
        _check_format(image)
        _check_pixels(image.size, limit)
        if isinstance(source, ImageContent) and image.format in ("JPEG", "MPO"):
            _check_scans(source.content)
    except ValueError:
        image.close()
        raise
    return image


def _upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    picture = _to_rgb(image)
    return picture.transpose(_TURN[orientation]) if orientation in _TURN else picture


def reduction(full_size: tuple[int, int], size: tuple[int, int]) -> int:
    """Returns the factor 1, 2, 4 or 8 by which `load_image` reduced an image of full_size to size.

    Raises:
        ValueError: if none of them leads from full_size to size.
    """
    for factor in (1, 2, 4, 8):
        if size == (-(-full_size[0] // factor), -(-full_size[1] // factor)):
            return factor
    raise ValueError(f"image size: expected {tuple(full_size)}, got {tuple(size)}")


def _check_pixels(size: tuple[int, int], limit: int = MAX_PIXELS) -> None:
    if size[0] * size[1] > limit:
        raise TooManyPixels(
            f"it says that it is {size[0]} x {size[1]} pixels large, the limit is {limit} "
            "pixels: make it smaller or cut it into tiles"
        )


def _check_scans(content: bytes) -> None:
    """Refuses a JPEG file whose many scans would be decoded for hours."""
    scans, position = 0, 2
    while found := _MARKER.search(content, position):
        kind, start = found[0][1], found.end()
        if kind == 0xD9:  # the end of the image
            return
        scans += kind == 0xDA
        if scans > _MOST_SCANS:
            raise ValueError(f"it is a JPEG with more than {_MOST_SCANS} scans: save it again")
        position = start + int.from_bytes(content[start : start + 2], "big")


def _check_format(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ValueError("it is a PostScript program, not pixels: save it as PNG")


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1..8; 1 for none or where Pillow turns the image itself."""
    try:
        file = getattr(image, "fp", None)  # an ImageFile has one
        if image.format == "PNG" and file is not None and _exif_chunks(_reader(file))[1]:
            image.load()  # Pillow sees chunks after the pixels only then
    except BROKEN_FILE:
        return 1
    return _exif_orientation(image)


def _exif_orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1
    try:
        exif = Image.Image.getexif(image)
    except BROKEN_FILE:
        # A damaged EXIF block is common and says nothing of the pixels.
        return 1
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in _TURN else 1


def _upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Returns the size after a turn, or before it: sides are swapped by a quarter turn."""
    return (size[1], size[0]) if orientation >= 5 else (size[0], size[1])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no defined range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(wide: np.ndarray) -> np.ndarray:
    """Returns 16-bit grey [H, W], cut to 0..65535, as uint8; in strips, for the sake of memory."""
    narrow = np.empty(wide.shape, np.uint8)
    rows = max(1, _STRIP // wide.shape[1])
    for top in range(0, len(wide), rows):
        strip = np.clip(wide[top : top + rows], 0, 65535).astype(np.int32)
        narrow[top : top + rows] = (strip + 128) // 257
    return narrow


def _over_white(image: Image.Image) -> Image.Image:
    """Returns an image without its transparency; in strips, as each step needs 4 bytes a pixel."""
    picture = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        # Cropping loses a palette's transparency unless it is told beside the pixels.
        layer = image.crop(box)
        layer.info = image.info
        layer = layer.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        picture.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return picture


def _explain(source: ImageSource, error: Exception) -> str:
    path = None if isinstance(source, ImageContent) else source
    if isinstance(error, FileNotFoundError):
        reason = "no such file"
    elif path is not None and (isinstance(error, IsADirectoryError) or os.path.isdir(path)):
        reason = "it is a directory"
    elif isinstance(error, OSError) and _is_empty(source):
        reason = "the file is empty (0 bytes)"
    elif isinstance(error, Image.UnidentifiedImageError):
        reason = "not an image file that Pillow knows"
    elif isinstance(error, MemoryError):
        reason = "there is not enough memory for its pixels"
    else:
        # An operating system's own text would name the file once more.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"cannot read {'the image' if path is None else f'image {os.fspath(path)}'}: {reason}"


def _is_empty(source: ImageSource) -> bool:
    if isinstance(source, ImageContent):
        return not source.content
    return os.path.isfile(source) and os.path.getsize(source) == 0


def _plain_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Returns (width, height) of a JPEG or PNG file that says nothing of an orientation, else None.

    Raises:
        OSError: if the file cannot be opened or read, or is no regular file.
    """
    descriptor = open_plain(path)
    try:
        head = os.read(descriptor, _FIRST_BYTES)
        if head[:2] == b"\xff\xd8":
            return _jpeg_size(descriptor, head)
        if head[:8] == _PNG and head[12:16] == b"IHDR" and len(head) >= 33:
            width, height = struct.unpack(">II", head[16:24])
            # Without an extent it is no image, and Pillow says so.
            chunks = _exif_chunks(functools.partial(os.pread, descriptor))
            plain = width and height and not any(chunks)
            return (width, height) if plain else None
        return None
    finally:
        os.close(descriptor)


def _jpeg_size(descriptor: int, head: bytes) -> tuple[int, int] | None:
    position = 2
    while True:
        segment = head[position : position + 9]
        if len(segment) < 9:
            segment = os.pread(descriptor, 9, position)
        if len(segment) < 9 or segment[0] != 0xFF:
            return None
        marker, length = segment[1], int.from_bytes(segment[2:4], "big")
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", segment[5:9])
            return (width, height) if width and height else None
        # E1: EXIF or XMP, which may say that the picture is to be turned. Below C0, 01 and D0 to DA
        # are no segments with a length, or come after the frame that is looked for.
        if marker == 0xE1 or marker < 0xC0 or 0xD0 <= marker <= 0xDA or length < 2:
            return None
        position += 2 + length


def _reader(file: IO[bytes]) -> Callable[[int, int], bytes]:
    """Returns a function that reads (bytes, from a position) of an open file, and moves nothing."""
    if isinstance(file, io.BytesIO):
        content = file.getvalue()  # no copy
        return lambda count, position: content[position : position + count]
    return functools.partial(os.pread, file.fileno())


def _exif_chunks(read: Callable[[int, int], bytes]) -> tuple[bool, bool]:
    """Returns whether a PNG file has EXIF or XMP data (before its pixels, after them)."""
    early, position = False, len(_PNG)
    behind = False
    for _ in range(_MAX_CHUNKS):
        chunk = read(8 + len(_PROFILE), position)
        name, content = chunk[4:8], chunk[8:]
        if len(name) < 4 or name == b"IEND":
            break
        if name == b"IDAT":
            behind = True
        elif name == b"eXIf" or (
            name in (b"iTXt", b"tEXt", b"zTXt") and content.startswith((_PROFILE, _XMP))
        ):
            if behind:
                return early, True
            early = True
        position += 12 + int.from_bytes(chunk[:4], "big")
    return early, False
