"""Pictures of the page: reduced until they fit, with their boxes as an SVG laid over them."""

import base64
import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from m2det_jax.pages.contents import Picture
from m2det_jax.pages.markup import escape

# (longest side, JPEG quality): the first with which all pictures fit is taken.
_LADDER = ((1024, 84), (800, 80), (640, 76), (480, 72), (320, 66), (224, 60))
MAX_BOXES = 600  # drawn on a picture
MAX_ANCHORS = 500


def reduce(image: Image.Image) -> Image.Image:
    """Returns a picture no larger than the page will show it."""
    side = _LADDER[0][0]
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


class Pictured(Protocol):
    """Anything with an image."""

    @property
    def image(self) -> Image.Image:
        """The picture, RGB."""


def encode(pictures: Sequence[Pictured], budget: int) -> list[str]:
    """Returns data URIs of as many pictures, from the first on, as fit into `budget` characters.

    All are reduced alike before one is left out.
    """
    uris: list[str] = []
    for side, quality in _LADDER:
        uris = [_data_uri(picture.image, side, quality) for picture in pictures]
        if sum(map(len, uris)) <= budget:
            return uris
    total = np.cumsum([len(uri) for uri in uris])
    return uris[: int(np.searchsorted(total, budget, side="right"))]


def figure(picture: Picture, uri: str) -> str:
    """Returns the picture with its overlay, in a button that the page's script enlarges."""
    width, height = picture.size
    drawn = _drawn_first(picture)
    forced = int((~picture.covered).sum())
    caption = f"{_plural(len(picture.boxes), 'box', 'boxes')}"
    caption += f", {forced} without an anchor" if forced else ""
    if len(drawn) < len(picture.boxes):
        caption += f" ({len(drawn)} drawn)"
    style = f"--text:{max(width, height) / 26:.1f}px"
    return (
        f'<figure class="picture" data-forced="{forced}">'
        f'<button type="button" class="open" aria-label="Enlarge {escape(picture.title)}">'
        f'<span class="frame" style="aspect-ratio:{width}/{height}">'
        f'<img src="{uri}" alt="" width="{width}" height="{height}" loading="lazy">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" style="{style}" '
        f'aria-hidden="true">{_anchors(picture)}{_boxes(picture, drawn)}</svg></span></button>'
        f"<figcaption><b>{escape(picture.title)}</b><span>{escape(picture.reason)}</span>"
        f"<span>{caption}</span></figcaption></figure>"
    )


def _data_uri(image: Image.Image, side: int, quality: int) -> str:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _drawn_first(picture: Picture) -> np.ndarray:
    """Returns the boxes to draw; where they are too many, those without an anchor first."""
    order = np.argsort(picture.covered, kind="stable")[:MAX_BOXES]
    return np.sort(order)


def _rect(box: np.ndarray, css: str, title: str) -> str:
    x1, y1, x2, y2 = (float(v) for v in box)
    return (
        f'<rect class="{css}" x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0):.1f}" '
        f'height="{max(y2 - y1, 0):.1f}"><title>{escape(title)}</title></rect>'
    )


def _boxes(picture: Picture, drawn: np.ndarray) -> str:
    positives = np.bincount(picture.owners, minlength=len(picture.boxes))
    parts = []
    for i in drawn:
        css = "covered" if picture.covered[i] else "forced"
        title = f"{picture.names[i]}, best IoU {picture.best_iou[i]:.2f}, "
        title += _plural(int(positives[i]), "positive anchor", "positive anchors")
        title += "" if picture.covered[i] else ", forced"
        parts.append(_rect(picture.boxes[i], f"box {css}", title))
    # Names above all boxes, so that no line crosses a word; at the right they end with the box.
    for i in drawn:
        x1, y, x2, _ = (float(v) for v in picture.boxes[i])
        css = "covered" if picture.covered[i] else "forced"
        at_edge = x1 > 0.8 * picture.size[0]
        place = f'x="{x2:.1f}" text-anchor="end"' if at_edge else f'x="{x1:.1f}" dx="0.2em"'
        parts.append(
            f'<text class="{css}" {place} y="{y:.1f}" dy="0.95em">{escape(picture.names[i])}</text>'
        )
    return "".join(parts)


def _anchors(picture: Picture) -> str:
    shown = picture.anchors[:MAX_ANCHORS]
    rects = "".join(
        _rect(anchor, "anchor", f"anchor of {picture.names[owner]}")
        for anchor, owner in zip(shown, picture.owners, strict=False)
    )
    return f'<g class="anchors">{rects}</g>'


def _plural(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
