"""Candidates: the few boxes of an image, of all that the network predicts, that suppression sees.

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

    A single group comes by falling score.
    """

    boxes: Float[Array, "*batch G N 4"]  # xyxy
    scores: Float[Array, "*batch G N"]  # -inf: not a candidate
    labels: Int32[Array, "*batch G N"]


@functools.partial(jax.jit, static_argnames=("count", "per_class"))
def top_candidates(
    boxes: Num[ArrayLike, "A 4"], scores: Num[ArrayLike, "A C"], *, count: int, per_class: bool
) -> Candidates:
    """Selects the highest scores of an image; of equal ones the lower anchor, then class.

    Args:
        boxes: xyxy.
        scores: Anything that ranks; NaN counts as no candidate.
        count: So many, or all if there are fewer.
        per_class: So many of every class, G = C, in the order of the anchors. Else so many
            (anchor, class) pairs of the image, G = 1, the highest first.
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
    """Puts the candidates of several views of one image together, in one frame of coordinates.

    A single group is sorted by falling score again; several keep the order of the views.
    """
    boxes, scores, labels = (jnp.concatenate(field, axis=1) for field in zip(*views, strict=True))
    if len(scores) > 1:
        return Candidates(boxes, scores, labels)
    scores, order = jax.lax.top_k(scores, scores.shape[1])  # equal: lower index first
    return Candidates(boxes[:, order[0]], scores, labels[:, order[0]])


def _top_pairs(scores: Array, count: int) -> tuple[Array, Array, Array]:
    """Returns scores, anchors and classes of the `count` highest of all [A, C] scores, sorted.

    Exactly a top_k of the flattened scores, equal ones in their order, but without sorting A * C
    numbers: an anchor with a pair among the first k is among the k anchors with the best pairs.
    """
    num_classes = scores.shape[1]
    _, anchors = jax.lax.top_k(scores.max(axis=1), min(count, scores.shape[0]))
    anchors = jnp.sort(anchors)  # in their old order, so that ties are broken as before
    candidates = scores[anchors].reshape(-1)  # [k * C]
    top, index = jax.lax.top_k(candidates, min(count, candidates.shape[0]))
    return top, anchors[index // num_classes], (index % num_classes).astype(jnp.int32)
