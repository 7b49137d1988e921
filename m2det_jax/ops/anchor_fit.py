"""Anchor sizes and ratios fitted to the boxes of a data set.

K-means with the distance 1 - IoU of (width, height) gives a first guess, as in YOLO9000 (arXiv
1612.08242, section 2). Our anchors have the same ratios at all scales, which k-means does not know.
So a random search with a fixed seed then improves the coverage of the real grid of anchors.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from m2det_jax.ops.anchors import Size
from m2det_jax.ops.coverage import best_anchors

_SAMPLE = 3000  # boxes that the search uses
_TRIALS = 400
_SMALLEST_STEP = 1.1  # factor from one size to the next; the cells of the maps differ by 2
_SMALLEST_RATIO = 1.1


class AnchorShapes(NamedTuple):
    """Sizes and aspect ratios that anchors are built from."""

    sizes: tuple[float, ...]  # pixels, rising
    aspect_ratios: tuple[float, ...]  # width over height, above 1; each stands for its inverse too


def fit_anchors(
    boxes: Num[np.ndarray, "K 4"],
    start: AnchorShapes,
    *,
    build: Callable[[AnchorShapes], np.ndarray],
    feature_maps: Sequence[Size] | np.ndarray,
    positive_threshold: float,
    seed: int = 0,
) -> AnchorShapes:
    """Fits as many sizes and ratios as `start` has to the boxes of a data set.

    Two figures on a sample of the boxes say which shapes are best. The first is the share of boxes
    whose best IoU with an anchor is at least positive_threshold. Where it is equal, the mean of
    that IoU decides. `start` takes part, so the result is never worse than it on the sample. Check
    the result on all boxes.

    Args:
        boxes: xyxy pixels of the network input; boxes without an area are not used.
        start: sizes and ratios to begin with, such as those of the config.
        build: makes the anchors float32 [A, 4] from sizes and ratios.
        feature_maps: (height, width) in cells of every scale that `build` makes anchors for.
        positive_threshold: IoU.
        seed: of the sample, of k-means and of the search.

    Raises:
        ValueError: if no box has an area.
    """
    rng = np.random.default_rng(seed)
    boxes = np.asarray(boxes, np.float32)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    if not len(boxes):
        raise ValueError("anchors cannot be fitted: there is no box with an area")
    if len(boxes) > _SAMPLE:
        boxes = boxes[np.sort(rng.choice(len(boxes), _SAMPLE, replace=False))]

    def score(shapes: AnchorShapes) -> tuple[float, float]:
        overlap, _ = best_anchors(boxes, build(shapes), feature_maps)
        return float((overlap >= positive_threshold).mean()), float(overlap.mean())

    guess = first_guess(boxes[:, 2:] - boxes[:, :2], start, rng)
    best = max((start, guess), key=score)
    best_score, spread = score(best), 0.25
    for trial in range(_TRIALS):
        # Every other trial moves one number only: small steps finish what wide steps begin.
        moved = _move(best, spread, rng, one=trial % 2 == 1)
        if (moved_score := score(moved)) > best_score:
            best, best_score = moved, moved_score
        spread = max(0.98 * spread, 0.03)
    return best


def first_guess(
    shapes: Num[np.ndarray, "K 2"], like: AnchorShapes, rng: np.random.Generator
) -> AnchorShapes:
    """Turns k-means clusters of (width, height) into as many sizes and ratios as `like` has."""
    clusters = kmeans_shapes(shapes, len(like.sizes), rng)
    sizes = np.sort(np.sqrt(clusters.prod(axis=1)))
    # There may be fewer clusters than sizes: the other sizes are spread over the same range.
    missing = len(like.sizes) - len(sizes)
    sizes = np.sort([*sizes, *np.geomspace(sizes[0], sizes[-1], missing + 2)[1:-1]])
    long = np.maximum(shapes[:, 0] / shapes[:, 1], shapes[:, 1] / shapes[:, 0])
    # Elongations are clustered as boxes (r, 1). The first cluster is left to the squares, which
    # every cell has.
    elongations = np.stack([long, np.ones_like(long)], axis=1)
    found = np.sort(kmeans_shapes(elongations, len(like.aspect_ratios) + 1, rng)[:, 0])[1:]
    ratios = [*found.tolist(), *like.aspect_ratios[len(found) :]]
    return _rounded(sizes, np.asarray(ratios))


def kmeans_shapes(
    shapes: Num[np.ndarray, "K 2"], count: int, rng: np.random.Generator, *, rounds: int = 50
) -> np.ndarray:
    """Clusters (width, height) by 1 - IoU of boxes with a common centre.

    Returns:
        The means of the clusters, [C, 2]. C is `count`, or less if there are fewer different
        shapes.
    """
    shapes = np.asarray(shapes, np.float64)
    centres = shapes[rng.integers(len(shapes))][None, :]
    while len(centres) < count:  # k-means++: the next centre is likely to be far from the others
        weight = (1 - _shape_iou(shapes, centres).max(axis=1)) ** 2
        if weight.sum() < 1e-12:
            break
        chosen = shapes[rng.choice(len(shapes), p=weight / weight.sum())]
        centres = np.append(centres, chosen[None, :], axis=0)
    for _ in range(rounds):
        owner = _shape_iou(shapes, centres).argmax(axis=1)
        used = np.unique(owner)
        moved = np.stack([shapes[owner == cluster].mean(axis=0) for cluster in used])
        if moved.shape == centres.shape and np.allclose(moved, centres):
            break
        centres = moved
    return centres


def _shape_iou(shapes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the IoU [K, C] of shapes [K, 2] and shapes [C, 2] with a common centre."""
    intersection = np.minimum(shapes[:, None, :], centres[None, :, :]).prod(axis=2)
    areas = shapes.prod(axis=1)[:, None] + centres.prod(axis=1)[None, :]
    return intersection / (areas - intersection)


def _move(
    shapes: AnchorShapes, spread: float, rng: np.random.Generator, *, one: bool
) -> AnchorShapes:
    """Multiplies all sizes and ratios, or one of them, by random factors near 1."""
    values = np.log([*shapes.sizes, *shapes.aspect_ratios])
    step = rng.normal(0, spread, len(values))
    if one:
        step *= np.arange(len(values)) == rng.integers(len(values))
    values = np.exp(values + step)
    return _rounded(np.sort(values[: len(shapes.sizes)]), values[len(shapes.sizes) :])


def _rounded(sizes: np.ndarray, ratios: np.ndarray) -> AnchorShapes:
    """Rounds numbers for a config and keeps their rules: sizes rise, ratios differ from 1."""
    rising: list[float] = []
    for size in sizes:
        lowest = rising[-1] * _SMALLEST_STEP + 0.05 if rising else 1.0
        rising.append(round(max(float(size), lowest), 1))
    # A ratio below 1 gives the same pair of anchors as its inverse.
    ratios = np.maximum(np.maximum(ratios, 1 / ratios), _SMALLEST_RATIO)
    return AnchorShapes(tuple(rising), tuple(round(float(r), 2) for r in np.sort(ratios)))
