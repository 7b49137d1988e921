"""Bootstrap of two detectors' average precision: whether they differ by more than chance.

The images are drawn anew, with replacement, many times, the same ones for both detectors. The
interval holds the middle 95 % of the differences that come out. COCO's rule decides which
detection finds which object; it is computed once, and a drawn image then counts as often as it was
drawn. (hotcoco's `compare` counts a drawn image once however often it is drawn, so that its
intervals are about a quarter too narrow, and it has none of classes.)

Letters: I images, D detections, T IoU thresholds (0.50, 0.55, ... 0.95), R draws. The three figures
are AP (mean over T), AP50 and AP75.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from m2det_jax.data import DetectionIndex
from m2det_jax.metrics.detections import ImageDetections
from m2det_jax.metrics.scores import by_hotcoco, by_pycocotools

FIGURES = ("AP", "AP50", "AP75")
SIZES = ("all", "small", "medium", "large")  # COCO's, in the order of its evaluation
MIN_IMAGES = 10  # with objects of a group; an interval of fewer says little
_THRESHOLDS = 10
_RECALLS = np.linspace(0, 1, 101)
_DRAWS, _FEWEST_DRAWS, _WORK = 1000, 100, 4e9  # draws; numbers to add up in all of them
_IMAGES_AT_ONCE = 1000  # whose matches are Python objects at the same time
_BLOCK = 2_000_000  # numbers of a block of draws


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Detections of one class and size with what COCO matches them to, best score first.

    Attributes:
        images: int64 [D].
        hits: bool [T, D], it finds an object that counts.
        counted: bool [T, D], it is a hit or a false alarm, and not ignored.
        objects: int64 [I], objects to find in each image.
    """

    images: np.ndarray
    hits: np.ndarray
    counted: np.ndarray
    objects: np.ndarray

    @property
    def work(self) -> int:
        """Numbers that one draw adds up."""
        return len(self.images) * _THRESHOLDS


@dataclasses.dataclass(frozen=True)
class Difference:
    """A figure of two detectors, and the interval of its difference.

    Attributes:
        a, b: the figure of each; NaN without objects.
        low, high: ends of the interval of a - b; NaN if there are too few images.
    """

    a: float
    b: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1: a is better; -1: b is; 0: the interval holds 0, or there is none."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


# Of each group, such as "small" or class 3, its three figures.
Differences = dict[str | int, tuple[Difference, Difference, Difference]]


def compare(
    index: DetectionIndex,
    a: Sequence[ImageDetections],
    b: Sequence[ImageDetections],
    *,
    seed: int = 0,
) -> tuple[Differences, int]:
    """Compares the detections of two detectors in the same images.

    Args:
        a, b: detections of each; images without an entry count as images without detections.
        seed: of the drawn images.

    Returns:
        (differences, draws): by size ("all", "small", "medium", "large"; each the mean over the
        classes) and by class number; and the number of draws, fewer for more detections.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    sides = [matches_of(index, found) for found in (a, b)]
    work = sum(one.work for side in sides for one in side.values())
    draws = int(min(_DRAWS, max(_FEWEST_DRAWS, _WORK // max(work, 1))))
    rng = np.random.default_rng(seed)
    size = index.num_images
    weights = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    weights = np.concatenate([np.ones((1, size), np.int64), weights])  # the first: every image once
    drawn_a, drawn_b = (_figures(side, weights, len(index.class_names)) for side in sides)
    found: Differences = {}
    for group in drawn_a:
        enough = _images_with(sides[0], group) >= MIN_IMAGES
        first, second, third = (
            _difference(drawn_a[group][:, k], drawn_b[group][:, k], enough) for k in range(3)
        )
        found[group] = (first, second, third)
    return found, draws


def _images_with(matches: dict[tuple[int, str], Matches], group: str | int) -> int:
    """Returns how many images have objects of a size, or of a class."""
    wanted = [key for key in matches if key in ((group, "all"), (key[0], group))]
    has = [matches[key].objects > 0 for key in wanted]
    return int(np.any(has, axis=0).sum()) if has else 0


def _difference(a: np.ndarray, b: np.ndarray, enough: bool) -> Difference:
    """Returns a figure with its interval, from its values [1 + R] of which the first is real."""
    apart = (a - b)[1:]
    apart = apart[np.isfinite(apart)]
    low, high = math.nan, math.nan
    if enough and len(apart):
        low, high = np.percentile(apart, (2.5, 97.5)).tolist()
    return Difference(float(a[0]), float(b[0]), low, high)


def _figures(
    matches: dict[tuple[int, str], Matches], weights: np.ndarray, num_classes: int
) -> dict[str | int, np.ndarray]:
    """Returns the figures [R, 3] of each size, the mean over classes with objects, and class."""
    values = {key: average_precisions(one, weights) for key, one in matches.items()}
    none = np.full((len(weights), 3), math.nan)
    found: dict[str | int, np.ndarray] = {}
    for size in SIZES:
        parts = np.stack([none, *(v for (_, s), v in values.items() if s == size)])
        known = np.isfinite(parts)
        total = np.where(known, parts, 0).sum(0)
        found[size] = np.divide(total, known.sum(0), out=none.copy(), where=known.any(0))
    return found | {k: values.get((k, "all"), none) for k in range(num_classes)}


def average_precisions(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Returns AP, AP50 and AP75 for images that count several times or not at all.

    Precision is made non-increasing from the right and read at 101 recalls, as COCO does.

    Args:
        weights: int [R, I], how often each image counts.

    Returns:
        float64 [R, 3]; NaN where no object is drawn.
    """
    rows = max(1, _BLOCK // max(len(matches.images), 1))
    blocks = [_of_block(matches, weights[i : i + rows]) for i in range(0, len(weights), rows)]
    return np.concatenate(blocks)


def _of_block(matches: Matches, weights: np.ndarray) -> np.ndarray:
    objects = (weights @ matches.objects).astype(float)  # [R]
    by_detection = weights[:, matches.images].astype(float)  # [R, D]
    found, tried = np.zeros((_THRESHOLDS, len(weights))), None
    for t in range(_THRESHOLDS):
        if tried is None or not np.array_equal(matches.counted[t], matches.counted[t - 1]):
            tried = np.cumsum(by_detection * matches.counted[t], axis=1)
        at = np.flatnonzero(matches.hits[t])  # precision falls between two hits
        if not len(at):
            continue
        hits = np.cumsum(by_detection[:, at], axis=1)
        precision = hits / np.maximum(tried[:, at], 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(objects, 1)[:, None]
        reached = np.searchsorted(_RECALLS, recall, side="right")  # of the 101 recalls
        gained = np.diff(reached, axis=1, prepend=0)
        found[t] = (precision * gained).sum(1) / len(_RECALLS)
    values = np.stack([found.mean(0), found[0], found[5]], axis=1)
    return np.where(objects[:, None] > 0, values, math.nan)


def matches_of(
    index: DetectionIndex, detections: Sequence[ImageDetections]
) -> dict[tuple[int, str], Matches]:
    """Returns the matches of each class and size that has objects to find.

    Raises:
        ValueError: if detections do not fit the index or are malformed.
    """
    evaluator: Any = by_pycocotools if index.difficult.any() else by_hotcoco
    parts: dict[tuple[int, str], list[tuple]] = {}
    by_image = {found.image_id: found for found in detections}
    for start in range(0, index.num_images, _IMAGES_AT_ONCE):
        ids = range(start, min(start + _IMAGES_AT_ONCE, index.num_images))
        some = [dataclasses.replace(by_image[i], image_id=i - start) for i in ids if i in by_image]
        evaluation = evaluator(index.subset(list(ids)), some)
        sizes = {tuple(area): SIZES[k] for k, area in enumerate(evaluation.params.areaRng)}
        for one in evaluation.evalImgs:
            if one is not None:
                key = int(one["category_id"]), sizes[tuple(one["aRng"])]
                parts.setdefault(key, []).append(_part(one, start))
    found = {key: _joined(rows, index.num_images) for key, rows in parts.items()}
    return {key: one for key, one in found.items() if one.objects.any()}


def _part(one: dict[str, Any], first: int) -> tuple:
    """Returns (image, objects, scores, hits, counted) of an image; first: number of its part."""
    ignored = np.asarray(one["dtIgnore"], bool).reshape(_THRESHOLDS, -1)
    matched = np.asarray(one["dtMatches"]).reshape(_THRESHOLDS, -1) > 0
    objects = int((~np.asarray(one["gtIgnore"], bool)).sum())
    scores = np.asarray(one["dtScores"], float)
    return int(one["image_id"]) + first, objects, scores, matched & ~ignored, ~ignored


def _joined(rows: list[tuple], num_images: int) -> Matches:
    objects = np.zeros(num_images, np.int64)
    for image, number, *_ in rows:
        objects[image] = number
    scores = np.concatenate([row[2] for row in rows])
    order = np.argsort(-scores, kind="stable")
    images = np.repeat([row[0] for row in rows], [len(row[2]) for row in rows])
    hits, counted = (np.concatenate([row[k] for row in rows], axis=1)[:, order] for k in (3, 4))
    kept = counted.any(0)  # what is ignored at every threshold changes nothing
    return Matches(images[order][kept], hits[:, kept], counted[:, kept], objects)
