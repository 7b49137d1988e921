"""Sliced inference: a large picture is seen whole and in overlapping tiles, detections merged.

In the whole picture, brought to the size of the network input, a small object has too few pixels.
Tiles show it larger. They have the shape of the network input and overlap by a quarter, and the
whole picture is one more view, for the objects that are larger than a tile. All tiles, also those
of different pictures, fill the same batches. The candidates of all views of a picture go through
the run's own suppression together, so an object that several tiles see is detected once.

A box that ends at a border between tiles is a part of an object: the tile leaves it out. An object
of up to a fifth of a tile's side is whole in at least one tile.

Windows are (left, top, right, bottom). G groups, N candidates of a group.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m2det_jax import ops
from m2det_jax.data import ResizeSettings
from m2det_jax.data.augment.drawing import Window
from m2det_jax.errors import InputError
from m2det_jax.inference.pictures import ImageLike, Picture, View, look_at, look_at_window
from m2det_jax.inference.programs import Programs
from m2det_jax.inference.stream import ahead, in_batches, until_error
from m2det_jax.metrics.detections import one_behind, original_boxes
from m2det_jax.run import memory

OVERLAP = 0.25  # of neighbouring tiles, share of a tile's side
AUTO = "auto"  # tiles of the size of the network input
SMALLEST = 32  # pixels of a tile's longer side
# A box counts as cut if it ends within this share of a tile's side from a border between tiles.
_EDGE = 1 / 64
_FEWEST = 256  # candidates that a suppression is compiled for


class _Candidates(NamedTuple):
    """`ops.Candidates` in the memory of the host, of one picture or view."""

    boxes: np.ndarray  # [G, N, 4]
    scores: np.ndarray  # [G, N]
    labels: np.ndarray  # [G, N]


class Found(NamedTuple):
    """The n detections of a picture: boxes float32 [n, 4] in its pixels, scores, labels [n]."""

    picture: Picture
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class _Look(NamedTuple):
    """A view of a picture: all of it (window None), or a tile."""

    number: int  # of the picture
    picture: Picture
    window: Window | None
    draw: Callable[[], list[View]]


def tile_size(slices: int | str, image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the (height, width) of a tile, in pixels of the picture.

    Args:
        slices: the longer side of a tile, pixels; "auto": as large as the network input.
        image_size: (height, width) of the network input.

    Raises:
        InputError: if it is neither.
    """
    if slices == AUTO:
        return image_size
    if isinstance(slices, bool) or not isinstance(slices, int) or slices < SMALLEST:
        raise InputError(
            f"slices: pixels of a tile's longer side, {SMALLEST} or more, or {AUTO!r} expected, "
            f"got {slices!r}"
        )
    scale = slices / max(image_size)
    height, width = (max(1, round(side * scale)) for side in image_size)
    return height, width


def tile_windows(size: tuple[int, int], tile: tuple[int, int]) -> list[Window]:
    """Returns the windows of the tiles of a picture, which cover it; [] if it fits into one.

    Where a picture is narrower or lower than a tile, its tiles reach beyond it.

    Args:
        size: (width, height) of the picture.
        tile: (height, width) of a tile.
    """
    lefts, tops = _starts(size[0], tile[1]), _starts(size[1], tile[0])
    if len(lefts) == len(tops) == 1:
        return []
    return [
        (float(x), float(y), float(x + tile[1]), float(y + tile[0])) for y in tops for x in lefts
    ]


def _starts(side: int, tile: int) -> list[int]:
    """Returns where tiles start along a side of a picture, evenly spread."""
    if side <= tile:
        return [0]
    count = math.ceil((side - tile) / (tile * (1 - OVERLAP))) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def detect_sliced(
    programs: Programs,
    images: Iterable[ImageLike],
    *,
    tile: tuple[int, int],
    threshold: float,
    batch_size: int,
    threads: int,
) -> Iterator[Found]:
    """Yields the detections of each picture, as they are given.

    The next picture is decoded, and tiles are drawn, while the device computes. An error comes
    after the detections of all pictures before it.

    Args:
        programs: the compiled functions of the detector.
        tile: (height, width) of a tile, in pixels of the pictures.
        threshold: lowest score, 0..1.
        batch_size: tiles per call, over all devices.
        threads: that draw tiles.

    Raises:
        InputError: if an image cannot be read.
        OutOfMemory: if a batch does not fit into the memory of a device.
    """
    errors: list[Exception] = []
    look = functools.partial(_look_at, resizes=programs.resizes, tile=tile)
    with contextlib.closing(ahead(look, enumerate(images), threads=1, most=1)) as pictures:
        looks = until_error(itertools.chain.from_iterable(pictures), errors)
        drawn = ahead(lambda one: (one, one.draw()), looks, threads=threads,
                      most=batch_size + threads)  # fmt: skip
        with contextlib.closing(drawn):
            batches = in_batches(drawn, batch_size)
            started = (_start(programs, batch, batch_size) for batch in batches)
            seen = itertools.chain.from_iterable(fetch() for fetch in one_behind(started))
            for _, views in itertools.groupby(seen, key=lambda view: view[0].number):
                yield _merged(programs, list(views), threshold)
    if errors:
        raise errors[0]


def _look_at(
    numbered: tuple[int, ImageLike], *, resizes: Sequence[ResizeSettings], tile: tuple[int, int]
) -> list[_Look]:
    number, image = numbered
    picture, whole = look_at(image, resizes, f"images[{number}]")
    looks = [_Look(number, picture, None, lambda: whole)]
    if windows := tile_windows(picture.size, tile):
        pixels = picture.load()
        for window in windows:
            draw = functools.partial(look_at_window, pixels, window, resizes)
            looks.append(_Look(number, picture, window, draw))
    return looks


def _start(
    programs: Programs, drawn: Sequence[tuple[_Look, list[View]]], batch_size: int
) -> Callable[[], list[tuple[_Look, _Candidates]]]:
    """Starts the device on a batch; returns what waits for it and gives the candidates."""
    explained = functools.partial(memory.batch_explained, "prediction", "batch_size", batch_size)
    with explained():
        dispatched = programs.candidates([views for _, views in drawn], batch_size)

    def fetch() -> list[tuple[_Look, _Candidates]]:
        with explained():
            fields = zip(*jax.device_get(dispatched), strict=True)
        found = [np.concatenate(views, axis=2) for views in fields]  # [B, G, N, ...]
        return [
            (look, _Candidates(*(field[i] for field in found))) for i, (look, _) in enumerate(drawn)
        ]

    return fetch


def _merged(programs: Programs, views: list[tuple[_Look, _Candidates]], threshold: float) -> Found:
    """Returns the detections of the candidates of all views of a picture."""
    picture = views[0][0].picture
    kept = [_kept(look, candidates, threshold) for look, candidates in views]
    joined = [np.concatenate(field, axis=1) for field in zip(*kept, strict=True)]
    # A suppression is compiled for few numbers of candidates.
    count = max(_FEWEST, 2 ** math.ceil(math.log2(max(joined[1].shape[1], 1))))
    found: Any = jax.device_get(programs.suppress(_padded(joined, count), threshold))
    valid = found.valid[0]
    nowhere = np.zeros(2, np.float32)
    boxes = original_boxes(found.boxes[0][valid], nowhere + 1, nowhere, picture.size)
    return Found(picture, boxes.astype(np.float32), found.scores[0][valid], found.labels[0][valid])


def _kept(look: _Look, candidates: _Candidates, threshold: float) -> _Candidates:
    """Returns the candidates of a view that can become detections, in their order.

    They are as many in every group; scores of -inf fill it.
    """
    boxes, scores, labels = candidates  # [G, N, 4], [G, N], [G, N]
    keep = scores >= threshold
    if look.window is not None:
        keep &= ~_cut(boxes, look.window, look.picture.size)
    order = np.argsort(~keep, axis=1, kind="stable")[:, : int(keep.sum(axis=1).max())]
    scores = np.where(keep, scores, np.float32(-np.inf))
    return _Candidates(
        np.take_along_axis(boxes, order[..., None], axis=1),
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(labels, order, axis=1),
    )


def _cut(boxes: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Says which boxes [G, N, 4] end at a border of a window that is none of the picture's."""
    left, top, right, bottom = window
    x, y = _EDGE * (right - left), _EDGE * (bottom - top)
    ends = [
        (boxes[..., 0] <= left + x) & (left > 0),
        (boxes[..., 1] <= top + y) & (top > 0),
        (boxes[..., 2] >= right - x) & (right < size[0]),
        (boxes[..., 3] >= bottom - y) & (bottom < size[1]),
    ]
    return np.any(ends, axis=0)


def _padded(fields: Sequence[np.ndarray], count: int) -> ops.Candidates:
    """Returns candidates [1, G, count], filled with scores of -inf."""
    boxes, scores, labels = fields
    more = (0, count - scores.shape[1])
    return ops.Candidates(
        jnp.asarray(np.pad(boxes, ((0, 0), more, (0, 0)))[None]),
        jnp.asarray(np.pad(scores, ((0, 0), more), constant_values=-np.inf)[None]),
        jnp.asarray(np.pad(labels, ((0, 0), more))[None]),
    )
