"""Candidates: the boxes with the highest scores of an image; suppression sees no others.

Letters: A anchors, C classes, G groups, N candidates of a group.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

from m2det_jax.ops.boxes import ArrayLike


class Candidates(NamedTuple):
    """Scored boxes in groups: one group for each class, or one for the whole image.

    In a single group the highest score comes first.
    """

    boxes: Float[Array, "*batch G N 4"]  # xyxy
    scores: Float[Array, "*batch G N"]  # -inf: no candidate
    labels: Int32[Array, "*batch G N"]


@functools.partial(jax.jit, static_argnames=("count", "per_class"))
def top_candidates(
    boxes: Num[ArrayLike, "A 4"], scores: Num[ArrayLike, "A C"], *, count: int, per_class: bool
) -> Candidates:
    """Selects the highest scores of an image; of equal ones the lower anchor, then class.

    Args:
        boxes: xyxy.
        scores: any numbers that rank; NaN is no candidate.
        count: number of candidates; all are taken if there are fewer.
        per_class: take `count` anchors for every class, G = C, in the order of the anchors.
            Otherwise take `count` (anchor, class) pairs of the image, G = 1, the highest first.
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    if not per_class:
        top, anchor, label = _top_pairs(scores, count)
        return Candidates(boxes[anchor][None], top[None], label[None])
    _, anchor = jax.lax.top_k(scores.T, min(count, scores.shape[0]))  # [C, N]
    anchor = jnp.sort(anchor, axis=1)
    label = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32)[:, None], anchor.shape)
    return Candidates(boxes[anchor], scores[anchor, label], label)


@jax.jit
def merge_candidates(views: Sequence[Candidates]) -> Candidates:
    """Joins the candidates of several views of one image, whose coordinates have one origin.

    A single group is sorted again, the highest score first. Several groups keep the order of the
    views.
    """
    boxes, scores, labels = (jnp.concatenate(field, axis=1) for field in zip(*views, strict=True))
    if len(scores) > 1:
        return Candidates(boxes, scores, labels)
    scores, order = jax.lax.top_k(scores, scores.shape[1])  # equal: lower index first
    return Candidates(boxes[:, order[0]], scores, labels[:, order[0]])


def _top_pairs(scores: Array, count: int) -> tuple[Array, Array, Array]:
    """Returns scores, anchors and classes of the `count` highest of all [A, C] scores, sorted.

    The result is that of top_k on the flattened scores, also for equal scores, but A * C numbers
    are not sorted: an anchor with a pair among the first k is one of the k anchors whose best pairs
    are highest.
    """
    num_classes = scores.shape[1]
    _, anchors = jax.lax.top_k(scores.max(axis=1), min(count, scores.shape[0]))
    anchors = jnp.sort(anchors)  # in their first order, which decides among equal scores
    candidates = scores[anchors].reshape(-1)  # [k * C]
    top, index = jax.lax.top_k(candidates, min(count, candidates.shape[0]))
    return top, anchors[index // num_classes], (index % num_classes).astype(jnp.int32)
