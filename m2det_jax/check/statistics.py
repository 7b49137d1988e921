"""Statistics of a data set: sizes, shapes, objects per image.

K boxes. Sizes are named as in the COCO evaluation, by area: small below 32 x 32 pixels, large from
96 x 96 pixels.
"""

import dataclasses

import numpy as np

from m2det_jax.data.augment.canvas import areas

_SIZE_EDGES = (32.0**2, 96.0**2)


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Counts between edges: counts[i] of the values in [edges[i], edges[i + 1]).

    Attributes:
        edges: [n + 1], rising.
        counts: int64 [n], or [n, parts] where the values are told apart by a group.
    """

    edges: np.ndarray
    counts: np.ndarray


def size_groups(boxes: np.ndarray) -> np.ndarray:
    """Returns 0, 1, 2 for small, medium and large boxes: int64 [K]."""
    return np.searchsorted(_SIZE_EDGES, areas(boxes), side="right")


def share_by(groups: np.ndarray, hits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts the members of every group 0..count - 1, and those among them that are hits.

    Args:
        groups: int [K].
        hits: bool [K].
    """
    return np.bincount(groups, minlength=count), np.bincount(groups[hits], minlength=count)


def histogram(values: np.ndarray, edges: np.ndarray, groups: np.ndarray | None = None) -> Histogram:
    """Counts values between edges; those beyond the ends go to the first and the last bin.

    Args:
        groups: int [K] from 0; counts get one column for each.
    """
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    if groups is None:
        return Histogram(edges, np.bincount(place, minlength=bins))
    parts = int(groups.max(initial=0)) + 1
    counts = np.bincount(place * parts + groups, minlength=bins * parts)
    return Histogram(edges, counts.reshape(bins, parts))


def side_edges(image_size: tuple[int, int]) -> np.ndarray:
    """Returns edges for box sides (the root of the area), pixels: evenly in the logarithm."""
    return np.geomspace(2, max(image_size), 25)


def ratio_edges() -> np.ndarray:
    """Returns edges for width over height: from 1:8 to 8:1, evenly in the logarithm."""
    return np.geomspace(1 / 8, 8, 25)


def count_edges(largest: int) -> np.ndarray:
    """Returns edges for objects per image: whole numbers, at most about 25 bins."""
    step = max(1, -(-(largest + 1) // 25))
    return np.arange(0, largest + step + 1, step)
