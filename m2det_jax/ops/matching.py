"""Matching of anchors and objects: which anchor learns which object, and what it must predict.

Letters: A anchors, M objects of an image (padded; the mask says which are real). Everything is
for one image; use vmap for a batch. Memory stays at a few [chunk_size, A] arrays, however large M
is.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer, Num

from m2det_jax.ops.boxes import VARIANCES, ArrayLike, Real, encode, iou

# After the first round few boxes still need an anchor; this many are compared together.
_BOXES_PER_ROUND = 8


class Matches(NamedTuple):
    """The object of every anchor. An anchor that is neither positive nor negative is ignored."""

    box_index: Int32[Array, "*batch A"]  # into boxes; where not positive, the best overlap
    positive: Bool[Array, "*batch A"]
    negative: Bool[Array, "*batch A"]


class Targets(NamedTuple):
    """The values that the network must predict at every anchor."""

    labels: Int32[Array, "*batch A"]  # class of a positive anchor, else -1
    deltas: Float[Array, "*batch A 4"]  # as `encode` makes them; 0 where not positive
    positive: Bool[Array, "*batch A"]
    negative: Bool[Array, "*batch A"]


class _Overlaps(NamedTuple):
    """The best partners that one pass over all pairs of anchors and boxes finds."""

    anchor_iou: Array  # [A] best IoU with a valid box; -1 if there is none
    anchor_box: Array  # [A] that box; the lowest index of several; 0 if there is none
    box_affinity: Array  # [M] best affinity with an anchor
    box_anchor: Array  # [M] that anchor; the lowest index of several


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
    """Gives every anchor the object that it overlaps most, and every object its own anchor.

    An anchor is positive if its best IoU is at least positive_threshold, and negative if it is
    below negative_threshold. In addition every valid box gets an anchor of its own, which becomes
    positive for that box. This happens in rounds:

    - Each box without its own anchor asks for the best of the anchors that no box owns yet.
    - If several boxes ask for one anchor, the box with the higher IoU gets it (the lower index if
      they are equal). The others ask again in the next round.
    - A box that overlaps no free anchor asks for the nearest one: the smallest sum of absolute
      differences of the four coordinates.
    - If there are more valid boxes than anchors, the last ones get none.

    Args:
        anchors: xyxy, [A, 4], A >= 1.
        boxes: xyxy, [M, 4]; M may be 0.
        mask: True for boxes, False for padding, whose coordinates do not matter.
        positive_threshold: IoU.
        negative_threshold: IoU, at most positive_threshold. Anchors between the two are ignored.
        chunk_size: number of boxes that are compared with all anchors at a time.

    Raises:
        ValueError: if there are no anchors, or negative_threshold is above positive_threshold.
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
    """Matches the objects of one image with the anchors and returns what each anchor must predict.

    Arguments and errors are those of `match`. In addition, labels are class indices from 0, and
    variances are those of `encode`.
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
        # The last chunk starts earlier and does not pass the end: a box that is compared twice
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
    """Returns for every anchor [A] the box that owns it, or -1."""

    State = tuple[Array, Array, Array, Array]  # owner [A]; pending, affinity, wish [M]

    def waiting(state: State) -> Array:
        return state[1].any()

    def one_round(state: State) -> State:
        owner, pending, affinity, wish = state
        winner = _winners(pending, affinity, wish, anchors.shape[0])
        box_ids = jnp.arange(boxes.shape[0], dtype=jnp.int32)
        owner = owner.at[jnp.where(winner, wish, anchors.shape[0])].set(box_ids, mode="drop")
        # Without a free anchor no box can win: the other boxes get none, and the loop ends.
        pending = pending & ~winner & (owner < 0).any()
        affinity, wish = _ask_again(anchors, boxes, owner >= 0, pending, affinity, wish)
        return owner, pending, affinity, wish

    nobody = jnp.full((anchors.shape[0],), -1, jnp.int32)
    state = (nobody, mask, overlaps.box_affinity, overlaps.box_anchor)
    return jax.lax.while_loop(waiting, one_round, state)[0]


def _winners(pending: Array, affinity: Array, wish: Array, num_anchors: int) -> Array:
    """Returns which pending boxes [M] get the anchor that they ask for: the highest, then first."""
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
    """Finds the best free anchor of every pending box; the entries of other boxes mean nothing."""
    rows = min(_BOXES_PER_ROUND, boxes.shape[0])
    pending_first = jnp.argsort(~pending, stable=True)
    count = pending.sum()

    State = tuple[Array, Array, Array]  # start; affinity, wish [M]

    def some_left(state: State) -> Array:
        return state[0] < count

    def ask(state: State) -> State:
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
    """Returns the IoU, and the affinity by which a box ranks anchors.

    The affinity is the IoU, or minus the distance where the IoU is 0. For a box with NaN the IoU is
    0 and the affinity with every anchor is -inf: with NaN, which is not equal to itself, the rounds
    of `match` would never end. The deltas of such a box are NaN, so that the loss shows it.
    """
    overlap = iou(boxes, anchors)
    overlap = jnp.where(jnp.isnan(overlap), 0, overlap)
    distance = jnp.zeros_like(overlap)
    for i in range(4):
        distance += jnp.abs(boxes[:, i][:, None] - anchors[:, i][None, :])
    distance = jnp.where(jnp.isnan(distance), jnp.inf, distance)
    return overlap, jnp.where(overlap > 0, overlap, -distance)
