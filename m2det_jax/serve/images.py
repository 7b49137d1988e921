"""Images of requests: decoded in threads for the detector, and drawn with their detections."""

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence

from PIL import Image

from m2det_jax.data import ResizeSettings
from m2det_jax.data.images import (
    CONTENT_FORMATS,
    ImageContent,
    TooManyPixels,
    UnreadableImage,
    count_pixels,
)
from m2det_jax.inference.picture_detector import Seen
from m2det_jax.inference.pictures import look_at
from m2det_jax.inference.result import Result
from m2det_jax.serve.problems import Limits, Problem

_QUALITY = 90  # of a drawn JPEG


class Images:
    """Decodes and draws; its functions are called by several threads.

    All images that are decoded at the same time have `max_pixels` together, so that memory is
    bounded by the largest image that is allowed.
    """

    def __init__(self, resizes: Sequence[ResizeSettings], limits: Limits) -> None:
        self._resizes, self._limits = resizes, limits
        self._held = 0
        self._freed = threading.Condition()

    def decode(self, content: bytes) -> Seen:
        """Returns an image at all input sizes of the network.

        Raises:
            Problem: if it has too many pixels, is no image, or is damaged.
        """
        image = ImageContent(content, self._limits.max_pixels)
        try:
            with self._hold(count_pixels(image)):
                return look_at(image, self._resizes)
        except UnreadableImage as error:
            raise self._refusal(error) from error

    def draw(self, result: Result) -> bytes:
        """Returns the picture with its boxes, as a JPEG file."""
        width, height = result.picture.size
        content = io.BytesIO()
        with self._hold(2 * width * height):  # of which one is drawn on
            result.draw().save(content, "JPEG", quality=_QUALITY)
        return content.getvalue()

    @contextlib.contextmanager
    def _hold(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._limits.max_pixels)
        with self._freed:
            self._freed.wait_for(lambda: self._held + pixels <= self._limits.max_pixels)
            self._held += pixels
        try:
            yield
        finally:
            with self._freed:
                self._held -= pixels
                self._freed.notify_all()

    def _refusal(self, error: UnreadableImage) -> Problem:
        if isinstance(error.__cause__, TooManyPixels | Image.DecompressionBombError):
            limit = self._limits.max_pixels
            return Problem(
                413,
                str(error),
                expected=f"an image of at most {limit} pixels",
                remedy="make the image smaller, or raise --max_pixels of the service",
            )
        formats = f"an image of one of the formats {', '.join(CONTENT_FORMATS)}"
        if isinstance(error.__cause__, Image.UnidentifiedImageError):
            remedy = "send the file of the image as the body, or as multipart/form-data"
            return Problem(415, str(error), expected=formats, remedy=remedy)
        return Problem(
            422, str(error), expected="an image that is whole and not damaged",
            remedy="save the image again, as JPEG or PNG",
        )  # fmt: skip
