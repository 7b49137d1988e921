"""Detections: the boxes of an image that suppression has chosen, in one form for all its kinds.

Letters: N boxes, K outputs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


class Detections(NamedTuple):
    """The detections of an image, highest score first, then rows that are not valid."""

    boxes: Float[Array, "*batch K 4"]  # 0 where not valid
    scores: Float[Array, "*batch K"]  # 0 where not valid
    labels: Int32[Array, "*batch K"]  # -1 where not valid
    valid: Bool[Array, "*batch K"]


def best_detections(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    labels: Int32[Array, "N"],
    keep: Bool[Array, "N"],
    *,
    max_per_class: int,
    max_outputs: int,
) -> Detections:
    """Returns the kept boxes with the highest scores; of equal ones the first.

    Args:
        boxes: xyxy.
        scores: In any order.
        labels: Classes.
        keep: Which boxes may be returned.
        max_per_class: The most detections of one class; 0: no limit.
        max_outputs: K. May be larger than N.
    """
    scores, order = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), keep.size)
    return first_detections(
        boxes[order],
        scores,
        labels[order],
        keep[order],
        max_per_class=max_per_class,
        max_outputs=max_outputs,
    )


def first_detections(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    labels: Int32[Array, "N"],
    keep: Bool[Array, "N"],
    *,
    max_per_class: int,
    max_outputs: int,
) -> Detections:
    """Does what `best_detections` does, of boxes that come by falling score."""
    if max_per_class:
        keep &= _rank_within(labels, keep) < max_per_class
    rank, valid = first_kept(keep, max_outputs)
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[rank], 0),
        scores=jnp.where(valid, scores[rank], 0),
        labels=jnp.where(valid, labels[rank], -1),
        valid=valid,
    )


def _rank_within(labels: Array, keep: Array) -> Array:
    """Returns how many kept boxes [N] of the same class come before each box."""
    by_label = jnp.argsort(labels, stable=True)
    before = jnp.cumsum(keep[by_label]) - keep[by_label]
    sorted_labels = labels[by_label]
    first = jnp.searchsorted(sorted_labels, sorted_labels, side="left")
    return jnp.zeros_like(labels).at[by_label].set((before - before[first]).astype(jnp.int32))


def first_kept(keep: Array, count: int) -> tuple[Array, Array]:
    """Returns the positions of the first True values of `keep` [N], and which of these are real.

    Both [count]; a position that is not real is 0.
    """
    rank = jnp.cumsum(keep) - 1
    slot = jnp.where(keep & (rank < count), rank, count)
    positions = (
        jnp.zeros((count,), jnp.int32)
        .at[slot]
        .set(jnp.arange(keep.shape[0], dtype=jnp.int32), mode="drop")
    )
    return positions, jnp.arange(count) < keep.sum()
