"""Matching: which anchors learn which object, and what they have to predict.

Letters: A anchors, M objects of an image (padded; the mask says which are real). Everything is
for one image; batch by vmap. Memory stays at a few [chunk_size, A] arrays however large M is.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer, Num

from m2det_jax.ops.boxes import VARIANCES, ArrayLike, Real, encode, iou

# Boxes that still want an anchor are few after the first round; this many are looked at together.
_BOXES_PER_ROUND = 8


class Matches(NamedTuple):
    """The object of every anchor; neither positive nor negative means: ignore this anchor."""

    box_index: Int32[Array, "*batch A"]  # into boxes; where not positive, the best overlap
    positive: Bool[Array, "*batch A"]
    negative: Bool[Array, "*batch A"]


class Targets(NamedTuple):
    """What the network has to predict at every anchor."""

    labels: Int32[Array, "*batch A"]  # class of a positive anchor, else -1
    deltas: Float[Array, "*batch A 4"]  # as `encode` writes them; 0 where not positive
    positive: Bool[Array, "*batch A"]
    negative: Bool[Array, "*batch A"]


class _Overlaps(NamedTuple):
    """What one pass over all pairs finds."""

    anchor_iou: Array  # [A] best IoU with a valid box; -1 if there is none
    anchor_box: Array  # [A] that box; lowest index if several; 0 if there is none
    box_affinity: Array  # [M] best affinity with an anchor
    box_anchor: Array  # [M] that anchor; lowest index if several


@functools.partial(
    jax.jit, static_argnames=("positive_threshold", "negative_threshold", "chunk_size")
)
def match(
    anchors: Num[ArrayLike, "A 4"],
    boxes: Num[ArrayLike, "M 4"],
    mask: Bool[ArrayLike, "M"],
    *,
    positive_threshold: Real = 0.5,
    negative_threshold: Real = 0.4,
    chunk_size: int = 32,
) -> Matches:
    """Gives every anchor the object it overlaps best, and every object an anchor of its own.

    An anchor is positive if its best IoU is at least positive_threshold and negative if it is
    below negative_threshold. Besides, every valid box is forced onto an anchor, which becomes
    positive for that box, in rounds: each box that has none asks for its best among the anchors
    that nobody was forced onto; of several that ask for one anchor, the box with the higher IoU
    gets it (the lower index if equal), and the others ask again in the next round. A box that
    overlaps no such anchor asks for the nearest: the smallest sum of absolute differences of the
    four coordinates. If there are more valid boxes than anchors, the last to ask stay without.

    Args:
        anchors: xyxy, [A, 4], A >= 1.
        boxes: xyxy, [M, 4]; M may be 0.
        mask: True for boxes, False for padding, whose coordinates have no influence.
        positive_threshold: IoU.
        negative_threshold: IoU, at most positive_threshold. Anchors between the two are ignored.
        chunk_size: Boxes compared with all anchors at a time.

    Raises:
        ValueError: If there are no anchors, or the thresholds are in the wrong order.
    """
    if anchors.shape[0] == 0:
        raise ValueError("anchors: expected at least one, got none")
    if negative_threshold > positive_threshold:
        raise ValueError(
            f"negative_threshold: expected at most positive_threshold = {positive_threshold}, "
            f"got {negative_threshold}"
        )
    anchors = jnp.asarray(anchors, jnp.float32)
    boxes, mask = jnp.asarray(boxes, jnp.float32), jnp.asarray(mask, bool)
    if boxes.shape[0] == 0:
        boxes, mask = jnp.zeros((1, 4)), jnp.zeros((1,), bool)
    boxes = jnp.where(mask[:, None], boxes, 0)  # padding may hold NaN
    overlaps = _compare_all(anchors, boxes, mask, chunk_size)
    owner = _force(anchors, boxes, mask, overlaps)
    forced = owner >= 0
    return Matches(
        box_index=jnp.where(forced, owner, overlaps.anchor_box),
        positive=forced | (overlaps.anchor_iou >= positive_threshold),
        negative=~forced & (overlaps.anchor_iou < negative_threshold),
    )


@functools.partial(
    jax.jit, static_argnames=("positive_threshold", "negative_threshold", "chunk_size")
)
def assign_targets(
    anchors: Num[ArrayLike, "A 4"],
    boxes: Num[ArrayLike, "M 4"],
    labels: Integer[ArrayLike, "M"],
    mask: Bool[ArrayLike, "M"],
    *,
    positive_threshold: Real = 0.5,
    negative_threshold: Real = 0.4,
    variances: Sequence[Real] | ArrayLike = VARIANCES,
    chunk_size: int = 32,
) -> Targets:
    """Matches the objects of one image and writes what each anchor has to predict.

    Args and errors are those of `match`; labels are class indices from 0, variances those of
    `encode`.
    """
    matches = match(
        anchors,
        boxes,
        mask,
        positive_threshold=positive_threshold,
        negative_threshold=negative_threshold,
        chunk_size=chunk_size,
    )
    positive = matches.positive
    if boxes.shape[0] == 0:
        boxes, labels = jnp.zeros((1, 4)), jnp.zeros((1,), jnp.int32)
    matched_labels = jnp.asarray(labels, jnp.int32)[matches.box_index]  # [A]
    matched_boxes = jnp.asarray(boxes, jnp.float32)[matches.box_index]  # [A, 4]
    deltas = encode(matched_boxes, anchors, variances)
    return Targets(
        labels=jnp.where(positive, matched_labels, -1),
        deltas=jnp.where(positive[:, None], deltas, 0),
        positive=positive,
        negative=matches.negative,
    )


def _compare_all(anchors: Array, boxes: Array, mask: Array, chunk_size: int) -> _Overlaps:
    """Finds the best box of every anchor and the best anchor of every box, chunk by chunk."""
    num_anchors, num_boxes = anchors.shape[0], boxes.shape[0]
    num_chunks = -(-num_boxes // chunk_size)
    rows = -(-num_boxes // num_chunks)

    def add_chunk(chunk: Array, found: _Overlaps) -> _Overlaps:
        # The last chunk starts early rather than run over the end: comparing a box twice
        # changes nothing.
        start = jnp.minimum(chunk * rows, num_boxes - rows)
        some = jax.lax.dynamic_slice_in_dim(boxes, start, rows)
        valid = jax.lax.dynamic_slice_in_dim(mask, start, rows)
        overlap, affinity = _overlap_and_affinity(some, anchors)  # [rows, A]
        overlap = jnp.where(valid[:, None], overlap, -1)
        best = overlap.max(axis=0)
        box = start + overlap.argmax(axis=0).astype(jnp.int32)
        better = best > found.anchor_iou
        update = jax.lax.dynamic_update_slice_in_dim
        return _Overlaps(
            anchor_iou=jnp.where(better, best, found.anchor_iou),
            anchor_box=jnp.where(better, box, found.anchor_box),
            box_affinity=update(found.box_affinity, affinity.max(axis=1), start, 0),
            box_anchor=update(
                found.box_anchor, affinity.argmax(axis=1).astype(jnp.int32), start, 0
            ),
        )

    nothing = _Overlaps(
        anchor_iou=jnp.full((num_anchors,), -1, jnp.float32),
        anchor_box=jnp.zeros((num_anchors,), jnp.int32),
        box_affinity=jnp.zeros((num_boxes,), jnp.float32),
        box_anchor=jnp.zeros((num_boxes,), jnp.int32),
    )
    return jax.lax.fori_loop(0, num_chunks, add_chunk, nothing)


def _force(anchors: Array, boxes: Array, mask: Array, overlaps: _Overlaps) -> Array:
    """Returns for every anchor [A] the box that is forced onto it, or -1."""

    def waiting(state: tuple[Array, ...]) -> Array:
        return state[1].any()

    def one_round(state: tuple[Array, ...]) -> tuple[Array, ...]:
        owner, pending, affinity, wish = state
        winner = _winners(pending, affinity, wish, anchors.shape[0])
        box_ids = jnp.arange(boxes.shape[0], dtype=jnp.int32)
        owner = owner.at[jnp.where(winner, wish, anchors.shape[0])].set(box_ids, mode="drop")
        # With no anchor left nobody can win: the rest goes without, and the loop ends.
        pending = pending & ~winner & (owner < 0).any()
        affinity, wish = _ask_again(anchors, boxes, owner >= 0, pending, affinity, wish)
        return owner, pending, affinity, wish

    nobody = jnp.full((anchors.shape[0],), -1, jnp.int32)
    state = (nobody, mask, overlaps.box_affinity, overlaps.box_anchor)
    return jax.lax.while_loop(waiting, one_round, state)[0]


def _winners(pending: Array, affinity: Array, wish: Array, num_anchors: int) -> Array:
    """Says which pending boxes [M] get the anchor they ask for: the highest, then the first."""
    num_boxes = pending.shape[0]
    box_ids = jnp.arange(num_boxes, dtype=jnp.int32)
    highest = (
        jnp.full((num_anchors,), -jnp.inf).at[wish].max(jnp.where(pending, affinity, -jnp.inf))
    )
    is_highest = pending & (affinity == highest[wish])
    first = (
        jnp.full((num_anchors,), num_boxes, jnp.int32)
        .at[wish]
        .min(jnp.where(is_highest, box_ids, num_boxes))
    )
    return is_highest & (first[wish] == box_ids)


def _ask_again(
    anchors: Array, boxes: Array, taken: Array, pending: Array, affinity: Array, wish: Array
) -> tuple[Array, Array]:
    """Finds the best anchor not taken of every pending box; the entries of others mean nothing."""
    rows = min(_BOXES_PER_ROUND, boxes.shape[0])
    pending_first = jnp.argsort(~pending, stable=True)
    count = pending.sum()

    def some_left(state: tuple[Array, ...]) -> Array:
        return state[0] < count

    def ask(state: tuple[Array, ...]) -> tuple[Array, ...]:
        start, affinity, wish = state
        ids = jax.lax.dynamic_slice_in_dim(pending_first, start, rows)
        _, found = _overlap_and_affinity(boxes[ids], anchors)
        found = jnp.where(taken[None, :], -jnp.inf, found)  # [rows, A]
        affinity = affinity.at[ids].set(found.max(axis=1))
        wish = wish.at[ids].set(found.argmax(axis=1).astype(jnp.int32))
        return start + rows, affinity, wish

    _, affinity, wish = jax.lax.while_loop(some_left, ask, (jnp.zeros_like(count), affinity, wish))
    return affinity, wish


def _overlap_and_affinity(boxes: Array, anchors: Array) -> tuple[Array, Array]:
    """Returns IoU, and the number by which a box ranks anchors: IoU, without it minus distance.

    A box with NaN overlaps nothing and ranks all anchors last and equal. It must compare equal to
    itself, or the rounds of forcing would not end; its deltas are NaN and give the loss away.
    """
    overlap = iou(boxes, anchors)
    overlap = jnp.where(jnp.isnan(overlap), 0, overlap)
    distance = jnp.zeros_like(overlap)
    for i in range(4):
        distance += jnp.abs(boxes[:, i][:, None] - anchors[:, i][None, :])
    distance = jnp.where(jnp.isnan(distance), jnp.inf, distance)
    return overlap, jnp.where(overlap > 0, overlap, -distance)
