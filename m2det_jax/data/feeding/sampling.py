"""Sampling: the order of images where not all come equally often, and the size of each step.

Repeat-factor sampling (LVIS, arXiv 1908.03195, section 4.2 of its appendix): an image with a rare
class is seen more often in an epoch. f(c) is the share of images with class c, t the threshold:
r(c) = max(1, sqrt(t / f(c))), r(I) = the largest r(c) of the image's classes, 1 without objects.

An epoch visits every image floor(r(I)) times, and some once more, so that the visits are r(I) in
the mean over the epochs. Its length is the sum of r(I), rounded down or up by turns so that the
mean is right: epoch e begins at visit floor(e * sum), and any visit of a long run is found at once.
Everything is a function of (seed, epoch) or (seed, step). N images, C classes, L visits an epoch.
"""

import math

import numpy as np

from m2det_jax.data.index import DetectionIndex

_MOST_CLASSES = 40  # lines of the table of factors
# Keep the streams apart from each other and from those of anything else that starts from the seed.
_EPOCH_STREAM, _SIZE_STREAM = 0x6570, 0x7369


def class_factors(index: DetectionIndex, threshold: float) -> np.ndarray:
    """Returns r(c), float64 [C]; NaN for a class without objects."""
    images = np.repeat(np.arange(index.num_images), index.counts)
    pairs = np.unique(np.stack([index.labels, images], axis=1), axis=0)  # [pairs, (class, image)]
    frequency = np.bincount(pairs[:, 0], minlength=len(index.class_names)) / index.num_images
    frequency = np.where(frequency > 0, frequency, np.nan)
    return np.maximum(1, np.sqrt(threshold / frequency))


def image_factors(index: DetectionIndex, threshold: float) -> np.ndarray:
    """Returns r(I), float64 [N]; all 1 where threshold is 0."""
    images = np.repeat(np.arange(index.num_images), index.counts)
    factors = np.ones(index.num_images)
    np.maximum.at(factors, images, class_factors(index, threshold)[index.labels])
    return factors


def epoch_length(factors: np.ndarray) -> float:
    """Returns the number of images in an epoch, in the mean over the epochs."""
    base, extra = _parts(factors)
    return base + extra


def epoch_start(factors: np.ndarray, epoch: int) -> int:
    """Returns the number of visits before an epoch."""
    base, extra = _parts(factors)
    return epoch * base + math.floor(epoch * extra)


def epoch_order(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the images of an epoch in their order, int64 [L]."""
    rng = np.random.default_rng((_EPOCH_STREAM, seed, epoch))
    base, extra = _parts(factors)
    wanted = epoch_start(factors, epoch + 1) - epoch_start(factors, epoch) - base
    # Systematic rounding: one offset for the running sum of the chances gives each image one more
    # visit with its own chance. The offsets that give the wanted number are known beforehand.
    share = extra - math.floor(extra)
    low, high = (0, 1 - share) if wanted == math.floor(extra) else (1 - share, 1)
    visits = np.floor(factors).astype(np.int64)
    order = rng.permutation(len(factors))
    sums = np.cumsum((factors - visits)[order]) + rng.uniform(low, high)
    steps = np.minimum(np.floor(sums).astype(np.int64), wanted)
    steps[-1] = wanted  # whatever the rounding of the sum
    visits[order] += np.diff(steps, prepend=0)
    return rng.permutation(np.repeat(np.arange(len(factors)), visits))


def _parts(factors: np.ndarray) -> tuple[int, float]:
    """Returns (the visits that every epoch has, the mean number of further ones)."""
    whole = np.floor(factors)
    # Rounded, as a sum such as 3 * (1 / 3) is meant to be 1.
    return int(whole.sum()), round(float((factors - whole).sum()), 9)


class EpochOrder:
    """The image of any visit, counted over all epochs, without going through those before it."""

    def __init__(self, factors: np.ndarray, seed: int) -> None:
        self._factors, self._seed, self._length = factors, seed, epoch_length(factors)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, visit: int) -> int:
        epoch = int(visit / self._length)
        start, order = self._epoch(epoch)
        if visit < start:
            start, order = self._epoch(epoch - 1)
        elif visit >= start + len(order):
            start, order = self._epoch(epoch + 1)
        return int(order[visit - start])

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        orders = self._orders
        if epoch not in orders:
            found = (
                epoch_start(self._factors, epoch),
                epoch_order(self._factors, self._seed, epoch),
            )
            # Threads read on both sides of an epoch's end, hence the last three; a new dict, as
            # other threads may be reading the old one.
            orders = {known: orders[known] for known in sorted(orders)[-2:]} | {epoch: found}
            self._orders = orders
        return orders[epoch]


def size_of_step(sizes: tuple[tuple[int, int], ...], seed: int, step: int) -> int:
    """Returns which of the sizes a step has: evenly drawn, a function of (seed, step)."""
    if len(sizes) == 1:
        return 0
    return int(np.random.default_rng((_SIZE_STREAM, seed, step)).integers(len(sizes)))


def describe_sampling(index: DetectionIndex, threshold: float) -> str:
    """Returns the repeat factor of every class that is raised, rarest first, and the epoch."""
    factors = class_factors(index, threshold)
    images = image_factors(index, threshold)
    raised = [int(i) for i in np.argsort(-factors, kind="stable") if factors[i] > 1]
    width = max((len(index.class_names[i]) for i in raised[:_MOST_CLASSES]), default=0)
    lines = [f"  {index.class_names[i]:{width}}  {factors[i]:.2f}" for i in raised]
    if len(lines) > _MOST_CLASSES:
        lines[_MOST_CLASSES:] = [f"  and {len(lines) - _MOST_CLASSES} more"]
    empty = [name for name, r in zip(index.class_names, factors, strict=True) if np.isnan(r)]
    if empty:
        lines.append(f"  without objects: {', '.join(empty)}")
    others = len(factors) - len(raised) - len(empty)
    lines.append(f"  the other {others} classes: 1" if raised else "  1 for every class")
    lines.append(
        f"  images: factors {images.min():.2f} to {images.max():.2f}, an epoch has "
        f"{epoch_length(images):.1f} of {index.num_images}"
    )
    return "\n".join(lines)
