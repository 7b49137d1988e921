"""Pictures of detections and ground truth, drawn with Pillow.

Boxes are xyxy, in pixels of the image that they are drawn on, with exclusive x2, y2. Sizes are
(height, width). Every function returns a new RGB image and does not change its arguments.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from m2det_jax.drawing.text import Text, warn_of_missing

_INK = (28, 28, 30)
_PAPER = (246, 246, 244)
_SMALLEST_TEXT, _LARGEST_TEXT = 8, 40  # pixels
_GAP = 8  # pixels between the cells of a contact sheet

Corners = tuple[int, int, int, int]  # x1, y1, x2, y2; x2, y2 exclusive unless stated otherwise
Colour = tuple[int, int, int]  # red, green, blue, 0..255


def class_colour(label: int) -> Colour:
    """Returns the RGB colour of a class: hues a golden angle apart, in three brightnesses."""
    hue = (0.02 + label * 0.618034) % 1.0
    saturation, value = [(0.85, 1.0), (0.6, 0.95), (0.95, 0.75)][label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """Returns a copy as an RGB image; arrays are uint8 [H, W, 3]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"image: uint8 [H, W, 3] expected, got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _check(
    boxes: ArrayLike,
    labels: Sequence[int] | np.ndarray,
    scores: Sequence[float] | np.ndarray | None,
    class_names: Sequence[str],
) -> np.ndarray:
    """Returns the boxes as a float64 array [n, 4]; raises ValueError if the arguments are wrong."""
    boxes = np.asarray(boxes, np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"boxes: finite numbers [n, 4] expected, got shape {boxes.shape}")
    for name, values in (("labels", labels), ("scores", scores)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(
                f"{name}: one per box expected, got {len(values)} for {len(boxes)} boxes"
            )
    outside = sorted({int(label) for label in labels} - set(range(len(class_names))))
    if outside:
        raise ValueError(
            f"labels: class ids from 0 to {len(class_names) - 1} expected, got {outside}"
        )
    return boxes


def _text_colour(colour: Colour) -> Colour:
    """Returns black or white, the one that is easier to read on `colour`."""
    red, green, blue = colour
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _outline(
    pen: ImageDraw.ImageDraw, corners: Corners, colour: Colour, width: int, dashed: bool
) -> None:
    """Draws a rectangle whose outer edge is at `corners`, in inclusive pixels."""
    x1, y1, x2, y2 = corners
    width = max(1, min(width, (x2 - x1) // 3, (y2 - y1) // 3))  # keep the inside of a small box
    # Dark between the dashes, so that they are visible on a background of the same colour.
    pen.rectangle(corners, outline=_INK if dashed else colour, width=width)
    if not dashed:
        return
    dash = 4 * width
    for x in range(x1, x2 + 1, 2 * dash):
        end = min(x + dash - 1, x2)
        pen.rectangle((x, y1, end, y1 + width - 1), fill=colour)
        pen.rectangle((x, y2 - width + 1, end, y2), fill=colour)
    for y in range(y1, y2 + 1, 2 * dash):
        end = min(y + dash - 1, y2)
        pen.rectangle((x1, y, x1 + width - 1, end), fill=colour)
        pen.rectangle((x2 - width + 1, y, x2, end), fill=colour)


def _fit_text(text: str, text_size: int, room: int) -> Text:
    """Returns the text, at most `room` pixels wide: first its size is reduced, then it is cut."""
    fitted = Text(text, text_size)
    while fitted.width > room and text_size > _SMALLEST_TEXT:
        text_size -= 1
        fitted = Text(text, text_size)
    while text and fitted.width > room:
        text = text[:-1]
        fitted = Text(text, text_size)
    return fitted


def _hidden_share(place: Corners, others: list[Corners]) -> float:
    """Returns how much a rectangle at `place` hides of the others: the sum of their shares."""
    x1, y1, x2, y2 = place
    shares = (
        max(0, min(x2, c) - max(x1, a)) * max(0, min(y2, d) - max(y1, b)) / ((c - a) * (d - b))
        for a, b, c, d in others
    )
    return sum(shares)


def _tag_place(
    box: Corners,
    plate: tuple[int, int],
    size: tuple[int, int],
    tags: list[Corners],
    boxes: list[Corners],
) -> Corners:
    """Returns the place where a plate (w, h) hides least of other tags, then of other boxes.

    Candidates: above the box, below it, inside at the top and inside at the bottom; each aligned
    left or right.
    """
    (x1, y1, x2, y2), (w, h), (height, width) = box, plate, size
    columns = [max(0, min(x, width - w)) for x in (x1, x2 - w)]
    rows = [y for y in (y1 - h, y2, y1, y2 - h) if 0 <= y <= height - h] or [0]
    places = [(x, y, x + w, y + h) for y in rows for x in columns]
    return min(places, key=lambda p: 4 * _hidden_share(p, tags) + _hidden_share(p, boxes))


def _draw_tags(
    picture: Image.Image, boxes: list[Corners], texts: list[str], colours: list[Colour]
) -> None:
    """Writes one text at each box, on a plate of the box's colour, fully inside the picture."""
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    text_size = round(min(max(min(width, height) / 28, 10), _LARGEST_TEXT))
    pad = text_size // 6
    tags: list[Corners] = []
    for i, (box, full, colour) in enumerate(zip(boxes, texts, colours, strict=True)):
        text = _fit_text(full, text_size, width - 2 * pad)
        size = (text.right - text.left, text.bottom - text.top)
        plate = (math.ceil(size[0]) + 2 * pad, math.ceil(size[1]) + 2 * pad)
        if not text.width or plate[0] > width or plate[1] > height:
            continue  # the picture is too small for any text
        tag = _tag_place(box, plate, (height, width), tags, boxes[:i] + boxes[i + 1 :])
        tags.append(tag)
        pen.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
        text.draw(pen, tag[0] + pad - text.left, tag[1] + pad - text.top, _text_colour(colour))


def draw_boxes(
    image: Image.Image | np.ndarray,
    boxes: ArrayLike,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    *,
    dashed: bool = False,
    zoom: float = 1.0,
) -> Image.Image:
    """Draws boxes with their class names, and scores in per cent if given.

    Lines and text grow with the picture; text never leaves it. Boxes are clipped to the picture;
    boxes fully outside are not drawn.

    Args:
        image: PIL image or uint8 [H, W, 3].
        boxes: [n, 4].
        labels: class ids, integers [n].
        class_names: name of each class id.
        scores: [n], 0..1; None: no scores are written.
        dashed: draw dashed lines, as for ground truth.
        zoom: factor by which the picture is enlarged first, so that text fits a small one.

    Raises:
        ValueError: if the lengths differ, a box is not finite, or a label has no class name.
    """
    picture = _as_image(image)
    boxes = _check(boxes, labels, scores, class_names) * zoom
    warn_of_missing(tuple(class_names))
    if zoom != 1.0:
        size = [max(1, round(side * zoom)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    width, height = picture.size
    line = max(1, round(min(width, height) / 160))
    # The highest score is drawn last, on top; its tag is placed first, in the best place.
    order = list(range(len(boxes))) if scores is None else np.argsort(np.asarray(scores)).tolist()
    drawn, texts, colours = [], [], []
    for i in order:
        x1, y1, x2, y2 = (int(v) for v in np.rint(boxes[i]))
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            continue
        x1, y1 = max(x1, 0), max(y1, 0)
        x2, y2 = max(min(x2, width), x1 + 1), max(min(y2, height), y1 + 1)
        colour = class_colour(int(labels[i]))
        _outline(ImageDraw.Draw(picture), (x1, y1, x2 - 1, y2 - 1), colour, line, dashed)
        percent = "" if scores is None else f" {100 * float(scores[i]):.0f}%"
        drawn.append((x1, y1, x2, y2))
        texts.append(f"{class_names[int(labels[i])]}{percent}")
        colours.append(colour)
    _draw_tags(picture, drawn[::-1], texts[::-1], colours[::-1])
    return picture


def contact_sheet(
    images: Sequence[Image.Image | np.ndarray],
    *,
    columns: int = 4,
    cell_size: tuple[int, int] = (300, 400),
    titles: Sequence[str] | None = None,
) -> Image.Image:
    """Arranges images of any sizes on one sheet, row by row, each above its title if given.

    Args:
        images: PIL images or uint8 [H, W, 3].
        columns: largest number of images in a row.
        cell_size: largest (height, width) of an image on the sheet, in pixels. Larger images are
            reduced; smaller ones are not enlarged.
        titles: one text per image; None: no titles.

    Raises:
        ValueError: if there is no image, no column, or a wrong number of titles.
    """
    if not images or columns < 1 or (titles is not None and len(titles) != len(images)):
        raise ValueError(
            "contact_sheet: at least one image, one column and one title per image expected, got"
            f" {len(images)} images, {columns} columns, {titles and len(titles)} titles"
        )
    pictures = [_as_image(image) for image in images]
    for picture in pictures:
        picture.thumbnail((cell_size[1], cell_size[0]), Image.Resampling.LANCZOS)
    columns = min(columns, len(pictures))
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    text_size = max(10, min(18, height // 14))
    caption = 0 if titles is None else 2 * text_size
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + caption + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x = _GAP + i % columns * (width + _GAP)
        y = _GAP + i // columns * (height + caption + _GAP)
        left, top = (width - picture.width) // 2, (height - picture.height) // 2
        sheet.paste(picture, (x + left, y + top))
        if titles is not None:
            text = _fit_text(titles[i], text_size, width)
            middle = y + height + text_size - (text.top + text.bottom) // 2
            text.draw(pen, x + (width - text.width) // 2, middle, _INK)
    return sheet


def training_sheet(
    batch: Mapping[str, np.ndarray], class_names: Sequence[str], count: int
) -> Image.Image | None:
    """Draws the first images of a training batch with their boxes on one sheet.

    Args:
        batch: image uint8 [B, H, W, 3], boxes [B, M, 4], labels [B, M] and mask [B, M], which is
            False for padding.
        class_names: name of each class id.
        count: largest number of images on the sheet.

    Returns:
        The sheet, or None if it would be empty.
    """
    pictures = [
        draw_boxes(image, boxes[mask], labels[mask], class_names)
        for image, boxes, labels, mask in zip(
            *(batch[name][:count] for name in ("image", "boxes", "labels", "mask")), strict=True
        )
    ]
    return contact_sheet(pictures, columns=4) if pictures else None
