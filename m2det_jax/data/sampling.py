"""Which image comes when, where not all come equally often; and the picture size of each step.

Repeat-factor sampling (LVIS, arXiv 1908.03195, section 4.2 of its appendix): an image with a rare
class is seen more often in an epoch. f(c) is the share of images with class c, t the threshold:
r(c) = max(1, sqrt(t / f(c))), r(I) = the largest r(c) of the image's classes, 1 without objects.

An epoch visits every image floor(r(I)) times and some once more, drawn so that the expected visits
are r(I); its length is the whole part of the sum of r(I), the same in every epoch, for which the
chances of one more visit are scaled by less than one image's worth in all. Everything is a function
of (seed, epoch) or (seed, step). N images, C classes, L visits of an epoch.
"""

import numpy as np

from m2det_jax.data.index import DetectionIndex

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


def epoch_length(factors: np.ndarray) -> int:
    """Returns L, the images of an epoch."""
    return int(np.floor(factors).sum()) + _num_extra(factors)


def epoch_order(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Returns the images of an epoch in their order, int64 [L]."""
    rng = np.random.default_rng((_EPOCH_STREAM, seed, epoch))
    visits = np.floor(factors).astype(np.int64)
    extra = _num_extra(factors)
    if extra:
        # Systematic rounding: one random offset for the running sum of the chances. Each image gets
        # one more visit with its own chance, and all together get `extra`.
        order = rng.permutation(len(factors))
        chances = (factors - visits)[order]
        total = np.cumsum(chances) * (extra / chances.sum())
        total[-1] = extra
        steps = np.floor(total + rng.random()).astype(np.int64)
        visits[order] += np.diff(steps, prepend=0)
    return rng.permutation(np.repeat(np.arange(len(factors)), visits))


def _num_extra(factors: np.ndarray) -> int:
    # Sums such as 3 * (1 / 3) must not lose an image to rounding.
    return int(np.floor((factors - np.floor(factors)).sum() + 1e-9))


class EpochOrder:
    """The image of any visit, counted over all epochs, without going through those before it."""

    def __init__(self, factors: np.ndarray, seed: int) -> None:
        self._factors, self._seed, self._length = factors, seed, epoch_length(factors)
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, visit: int) -> int:
        epoch, position = divmod(visit, self._length)
        orders = self._orders
        if epoch not in orders:
            # Threads stand on both sides of an epoch's end, hence the last two; a new dict, as
            # others may be looking at the old one.
            order = epoch_order(self._factors, self._seed, epoch)
            orders = {known: orders[known] for known in sorted(orders)[-1:]} | {epoch: order}
            self._orders = orders
        return int(orders[epoch][position])


def size_of_step(sizes: tuple[tuple[int, int], ...], seed: int, step: int) -> int:
    """Returns which of the sizes a step has: evenly drawn, a function of (seed, step)."""
    if len(sizes) == 1:
        return 0
    return int(np.random.default_rng((_SIZE_STREAM, seed, step)).integers(len(sizes)))
