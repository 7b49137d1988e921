"""Boxes: formats, overlaps, and the deltas that a box regression predicts.

A box is xyxy unless a name says otherwise: (x1, y1, x2, y2) in pixels, x to the right, y down,
x2 and y2 exclusive edges. Image sizes are (height, width). Everything is computed and returned in
float32, whatever the dtype of the input is. Letters: N, M numbers of boxes; `...` any leading axes.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

ArrayLike: TypeAlias = Array | np.ndarray
Real: TypeAlias = float | int | np.floating | np.integer | Array

# Centre and size deltas are divided by these (SSD): the variance of both is then near 1.
VARIANCES = (0.1, 0.2)

# |log(box size / anchor size)| never exceeds this. No box in any image is e^30 = 1e13 times as
# large as an anchor, so no valid value changes, and the area of a box of 1e16 px is still finite.
MAX_LOG_RATIO = 30.0


@jax.jit
def xyxy_to_cxcywh(boxes: Num[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Returns (centre x, centre y, width, height) of xyxy boxes."""
    boxes = jnp.asarray(boxes, jnp.float32)
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


@jax.jit
def cxcywh_to_xyxy(boxes: Num[ArrayLike, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Returns (x1, y1, x2, y2) of boxes given as (centre x, centre y, width, height)."""
    boxes = jnp.asarray(boxes, jnp.float32)
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


@jax.jit
def area(boxes: Num[ArrayLike, "*batch 4"]) -> Float[Array, "*batch"]:
    """Returns areas in square pixels; 0 for a box whose x2 <= x1 or y2 <= y1."""
    return _area(_coordinates(boxes))


@jax.jit
def clip(
    boxes: Num[ArrayLike, "*batch 4"], image_size: Sequence[Real] | ArrayLike
) -> Float[Array, "*batch 4"]:
    """Clips xyxy boxes to an image of size (height, width)."""
    height, width = image_size[0], image_size[1]
    x1, y1, x2, y2 = _coordinates(boxes)
    columns = [jnp.clip(x1, 0, width), jnp.clip(y1, 0, height)]
    columns += [jnp.clip(x2, 0, width), jnp.clip(y2, 0, height)]
    return jnp.stack(columns, axis=-1).astype(jnp.float32)


@jax.jit
def iou(boxes_a: Num[ArrayLike, "N 4"], boxes_b: Num[ArrayLike, "M 4"]) -> Float[Array, "N M"]:
    """Returns the intersection over union of every pair, in [0, 1].

    A pair with a box of zero area, or of negative width or height, has 0. Gradients are finite.
    """
    intersection, union = _intersection_and_union(*_pairwise(boxes_a, boxes_b))
    return _safe_divide(intersection, union)


@jax.jit
def giou(boxes_a: Num[ArrayLike, "N 4"], boxes_b: Num[ArrayLike, "M 4"]) -> Float[Array, "N M"]:
    """Returns the generalized IoU of every pair, in [-1, 1] (arXiv 1902.09630).

    IoU - (hull - union) / hull, where the hull is the smallest box around both boxes. With a hull
    of zero area the second term is 0.
    """
    a, b = _pairwise(boxes_a, boxes_b)
    intersection, union = _intersection_and_union(a, b)
    hull_width, hull_height = _hull(a, b)
    hull = hull_width * hull_height
    return _safe_divide(intersection, union) - _safe_divide(hull - union, hull)


@jax.jit
def diou(boxes_a: Num[ArrayLike, "N 4"], boxes_b: Num[ArrayLike, "M 4"]) -> Float[Array, "N M"]:
    """Returns the distance IoU of every pair, in [-1, 1] (arXiv 1911.08287, equation 7).

    IoU - d^2 / c^2, where d is the distance of the centres and c the diagonal of the hull.
    """
    a, b = _pairwise(boxes_a, boxes_b)
    return _safe_divide(*_intersection_and_union(a, b)) - _centre_penalty(a, b)


@jax.jit
def ciou(boxes_a: Num[ArrayLike, "N 4"], boxes_b: Num[ArrayLike, "M 4"]) -> Float[Array, "N M"]:
    """Returns the complete IoU of every pair: DIoU - alpha v (arXiv 1911.08287, equations 8 to 11).

    v = 4 / pi^2 (atan(w_b / h_b) - atan(w_a / h_a))^2 compares the shapes. Its weight
    alpha = v / (1 - IoU + v) gets no gradient, as in the paper.
    """
    a, b = _pairwise(boxes_a, boxes_b)
    overlap = _safe_divide(*_intersection_and_union(a, b))
    shape = 4 / math.pi**2 * (_shape_angle(b) - _shape_angle(a)) ** 2
    weight = jax.lax.stop_gradient(_safe_divide(shape, 1 - overlap + shape))
    return overlap - _centre_penalty(a, b) - weight * shape


@jax.jit
def encode(
    boxes: Num[ArrayLike, "... 4"],
    anchors: Num[ArrayLike, "... 4"],
    variances: Sequence[Real] | ArrayLike = VARIANCES,
) -> Float[Array, "... 4"]:
    """Returns boxes as deltas from their anchors (SSD, arXiv 1512.02325, section 2.2).

    The deltas are ((cx - anchor cx) / anchor w, the same in y) / variances[0] and
    (log(w / anchor w), the same in h) / variances[1]. Leading axes are broadcast.
    Anchors must have positive sizes. For a side of length 0 the logarithm is -MAX_LOG_RATIO.
    """
    boxes, anchors = jnp.broadcast_arrays(xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors))
    offset = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    ratio = jnp.maximum(boxes[..., 2:] / anchors[..., 2:], math.exp(-MAX_LOG_RATIO))
    return jnp.concatenate([offset / variances[0], jnp.log(ratio) / variances[1]], axis=-1)


@jax.jit
def decode(
    deltas: Num[ArrayLike, "... 4"],
    anchors: Num[ArrayLike, "... 4"],
    variances: Sequence[Real] | ArrayLike = VARIANCES,
) -> Float[Array, "... 4"]:
    """Returns the xyxy boxes of the deltas that `encode` makes; not clipped to the image.

    The logarithm of the size ratio is limited to MAX_LOG_RATIO before exp, so that extreme deltas
    give a very large but finite box. Ratios up to e^30 do not change. Leading axes are broadcast.
    """
    deltas = jnp.asarray(deltas, jnp.float32)
    deltas, anchors = jnp.broadcast_arrays(deltas, xyxy_to_cxcywh(anchors))
    centre = anchors[..., :2] + deltas[..., :2] * variances[0] * anchors[..., 2:]
    log_ratio = jnp.minimum(deltas[..., 2:] * variances[1], MAX_LOG_RATIO)
    size = anchors[..., 2:] * jnp.exp(log_ratio)
    return cxcywh_to_xyxy(jnp.concatenate([centre, size], axis=-1))


def _coordinates(boxes: ArrayLike) -> tuple[Array, ...]:
    boxes = jnp.asarray(boxes, jnp.float32)
    return tuple(boxes[..., i] for i in range(4))


def _pairwise(boxes_a: ArrayLike, boxes_b: ArrayLike) -> tuple[tuple[Array, ...], ...]:
    """Returns coordinates as columns [N, 1] and rows [1, M]: no temporary has a last axis of 4."""
    a = tuple(column[:, None] for column in _coordinates(boxes_a))
    b = tuple(column[None, :] for column in _coordinates(boxes_b))
    return a, b


def _intersection_and_union(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, Array]:
    width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
    height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
    intersection = _product(width, height)
    return intersection, _area(a) + _area(b) - intersection


def _area(columns: tuple[Array, ...]) -> Array:
    x1, y1, x2, y2 = columns
    return _product(x2 - x1, y2 - y1)


def _product(width: Array, height: Array) -> Array:
    """Returns width times height; 0 unless both are positive.

    The selection comes after the product. Otherwise a compiler may make one fused multiply-add of
    the product and a later sum, and its rounding depends on the code around it. Many anchors have
    exactly the same IoU with a box: such rounding would choose among them at random.
    """
    return jnp.where((width > 0) & (height > 0), width * height, 0)


def _hull(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, Array]:
    width = jnp.maximum(a[2], b[2]) - jnp.minimum(a[0], b[0])
    height = jnp.maximum(a[3], b[3]) - jnp.minimum(a[1], b[1])
    return jnp.maximum(width, 0), jnp.maximum(height, 0)


def _centre_penalty(a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    width, height = _hull(a, b)
    dx = (a[0] + a[2] - b[0] - b[2]) / 2
    dy = (a[1] + a[3] - b[1] - b[3]) / 2
    return _safe_divide(dx**2 + dy**2, width**2 + height**2)


def _shape_angle(columns: tuple[Array, ...]) -> Array:
    x1, y1, x2, y2 = columns
    width, height = jnp.maximum(x2 - x1, 0), jnp.maximum(y2 - y1, 0)
    # The gradient of atan2 divides by w^2 + h^2. A point has no shape and gets angle 0.
    has_size = width**2 + height**2 > 0
    return jnp.arctan2(jnp.where(has_size, width, 0), jnp.where(has_size, height, 1))


def _safe_divide(numerator: Array, denominator: Array) -> Array:
    """Returns the quotient, 0 where the denominator is not positive, with finite gradients."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)
