"""Soft-NMS: boxes that overlap a better one lose score instead of being removed (arXiv 1704.04503).

Exactly the steps of the official code: the box with the highest score is taken, the scores of the
others decay by their overlap with it, those that fall below a floor are removed, and so on. This is
done for all groups of boxes at once, several picks a round of the loop: on a GPU a round costs a
wait for the host, and each small operation in it a kernel.

The official code keeps its boxes in one list, swaps the box that it takes to the front and fills
the place of a removed one with the last; of equal scores it takes the first in the list as it then
is. The list decides nothing where the highest score is always that of one box alone, which is
nearly always so. Only an image where two boxes share it is done again with the list, pick by pick.

All shapes are fixed; batch by vmap. Letters: N boxes, A anchors, C classes, G groups, K outputs,
P picks of a group.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Num

from m2det_jax.ops.boxes import ArrayLike, Real, iou
from m2det_jax.ops.candidates import Candidates, top_candidates
from m2det_jax.ops.detections import Detections, best_detections

Method = Literal["linear", "gaussian"]
# Picks in a round of the loop: the more, the fewer rounds, but the larger the program.
PICKS_PER_ROUND = 8


class _Picks(NamedTuple):
    """The boxes taken of each group, in the order in which they are taken."""

    index: Array  # [G, P] int32 box; 0 where not valid
    scores: Array  # [G, P] decayed; 0 where not valid
    valid: Array  # [G, P]


class _List(NamedTuple):
    """The boxes that are still in play, in the order of the official code's list."""

    order: Array  # [G, N] box at each place
    count: Array  # [G] places in use: those of the boxes already taken, then the others
    scores: Array  # [G, N] of the boxes, decayed so far


@functools.partial(jax.jit, static_argnames=("max_outputs", "method"))
def soft_nms(
    boxes: Num[ArrayLike, "N 4"],
    scores: Num[ArrayLike, "N"],
    *,
    max_outputs: int,
    method: Method = "linear",
    iou_threshold: Real = 0.3,
    sigma: Real = 0.5,
    score_floor: Real = 0.001,
    score_threshold: Real = -jnp.inf,
) -> tuple[Int32[Array, "K"], Float[Array, "K"], Bool[Array, "K"]]:
    """Takes boxes by falling score, regardless of class, and lets those that overlap lose score.

    Args:
        boxes: xyxy. The official code counts pixels inclusively: to compare, add 1 to x2 and y2.
        scores: 0 or more; NaN counts as no box.
        max_outputs: K. May be larger than N.
        method: "linear" multiplies a score by 1 - IoU where the IoU is above iou_threshold;
            "gaussian" multiplies every score by exp(-IoU^2 / sigma).
        iou_threshold: For "linear" (official code: 0.3).
        sigma: For "gaussian", above 0.
        score_floor: A box goes when its score falls below this. Boxes below it from the start take
            no part (the official code keeps those that overlap nothing).
        score_threshold: Only boxes with a score above this take part.

    Returns:
        Indices into boxes in the order in which they are taken, that is by falling decayed score;
        those scores; which are valid. The others are 0.
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    if scores.shape[0] == 0:
        return (
            jnp.zeros((max_outputs,), jnp.int32),
            jnp.zeros((max_outputs,), jnp.float32),
            jnp.zeros((max_outputs,), bool),
        )
    valid = (scores > score_threshold) & (scores >= score_floor)
    decay = _decay(method, iou_threshold, sigma)
    picks = min(max_outputs, scores.shape[0])
    index, taken, found = _pick(boxes[None], scores[None], valid[None], decay, score_floor, picks)
    padding = (0, max_outputs - picks)
    return jnp.pad(index[0], padding), jnp.pad(taken[0], padding), jnp.pad(found[0], padding)


@functools.partial(
    jax.jit,
    static_argnames=("method", "candidates", "max_per_class", "max_outputs", "class_agnostic"),
)
def multiclass_soft_nms(
    boxes: Num[ArrayLike, "A 4"],
    scores: Num[ArrayLike, "A C"],
    *,
    method: Method = "linear",
    iou_threshold: Real = 0.3,
    sigma: Real = 0.5,
    score_floor: Real = 0.001,
    score_threshold: Real = 0.05,
    candidates: int = 200,
    max_per_class: int = 0,
    max_outputs: int = 300,
    class_agnostic: bool = False,
) -> Detections:
    """Turns scores of every anchor and class into the detections of one image.

    Args:
        boxes: xyxy.
        scores: Probabilities.
        method, iou_threshold, sigma, score_floor: As for `soft_nms`.
        score_threshold: Only scores above this take part.
        candidates: Only so many anchors of a class, the highest, take part; with class_agnostic so
            many (anchor, class) pairs of the image.
        max_per_class: At most so many detections of a class; 0: no limit.
        max_outputs: K.
        class_agnostic: Boxes of all classes make each other lose score.
    """
    return soft_suppress(
        top_candidates(boxes, scores, count=candidates, per_class=not class_agnostic),
        method=method,
        iou_threshold=iou_threshold,
        sigma=sigma,
        score_floor=score_floor,
        score_threshold=score_threshold,
        max_per_class=max_per_class,
        max_outputs=max_outputs,
    )


@functools.partial(jax.jit, static_argnames=("method", "max_per_class", "max_outputs"))
def soft_suppress(
    candidates: Candidates,
    *,
    method: Method = "linear",
    iou_threshold: Real = 0.3,
    sigma: Real = 0.5,
    score_floor: Real = 0.001,
    score_threshold: Real = 0.05,
    max_per_class: int = 0,
    max_outputs: int = 300,
) -> Detections:
    """Turns the candidates of one image into its detections; boxes act within their group alone.

    Args are those of `multiclass_soft_nms`.
    """
    boxes, scores, labels = candidates
    num_groups, num_boxes = scores.shape
    # Scores fall from pick to pick: no group needs more picks than there are outputs. A limit per
    # class says how many picks only where the groups are the classes.
    limit = min(max_per_class, max_outputs) if max_per_class and num_groups > 1 else max_outputs
    valid = (scores > score_threshold) & (scores >= score_floor)
    index, taken, found = _pick(
        boxes,
        scores,
        valid,
        _decay(method, iou_threshold, sigma),
        score_floor,
        min(limit, num_boxes),
    )
    return best_detections(
        jnp.take_along_axis(boxes, index[:, :, None], axis=1).reshape(-1, 4),
        taken.reshape(-1),
        jnp.take_along_axis(labels, index, axis=1).reshape(-1),
        found.reshape(-1),
        max_per_class=max_per_class,
        max_outputs=max_outputs,
    )


def _decay(method: Method, iou_threshold: Real, sigma: Real) -> Callable[[Array], Array]:
    """Returns the factor on a score as a function of the IoU."""
    if method == "linear":
        return lambda overlap: jnp.where(overlap > iou_threshold, 1 - overlap, 1)
    if method == "gaussian":
        return lambda overlap: jnp.exp(-(overlap**2) / sigma)
    raise ValueError(f'method: expected "linear" or "gaussian", got {method!r}')


def _pick(
    boxes: Array,
    scores: Array,
    valid: Array,
    decay: Callable[[Array], Array],
    score_floor: Real,
    num_picks: int,
) -> _Picks:
    """Takes up to P boxes of every group [G, N]."""
    picks, tied = _pick_by_score(boxes, scores, valid, decay, score_floor, num_picks)
    # Where nothing is tied no box takes part here, and so there is no round.
    by_list = _pick_by_list(boxes, scores, valid & tied, decay, score_floor, num_picks)
    return jax.tree.map(lambda new, old: jnp.where(tied, new, old), by_list, picks)


def _pick_by_score(
    boxes: Array,
    scores: Array,
    valid: Array,
    decay: Callable[[Array], Array],
    score_floor: Real,
    num_picks: int,
) -> tuple[_Picks, Array]:
    """Does what `_pick` does if the second of its results is false: no pick was from a tie."""
    num_groups, num_boxes = scores.shape
    place = jnp.arange(num_boxes, dtype=jnp.int32)[None, :]

    def unfinished(state: tuple) -> Array:
        step, left, _, _, tied = state
        return (step < num_picks) & (left > -jnp.inf).any() & ~tied

    def take_some(state: tuple) -> tuple:
        step, left, index, taken, _ = state  # left: [G, N] scores in play, else -inf
        picked, equal = [], jnp.zeros(left.shape, bool)
        for _ in range(PICKS_PER_ROUND):
            box = left.argmax(axis=1, keepdims=True).astype(jnp.int32)  # [G, 1]
            score = jnp.take_along_axis(left, box, axis=1)
            picked.append((box, score))
            in_play = (left > -jnp.inf) & (place != box)
            equal |= in_play & (left == score) | jnp.isnan(left)
            chosen = jnp.take_along_axis(boxes, box[:, :, None], axis=1)  # [G, 1, 4]
            decayed = left * decay(jax.vmap(iou)(chosen, boxes)[:, 0])
            left = jnp.where(in_play & ~(decayed < score_floor), decayed, -jnp.inf)
        some_index, some_taken = (jnp.concatenate(x, axis=1) for x in zip(*picked, strict=True))
        index = jax.lax.dynamic_update_slice_in_dim(index, some_index, step, axis=1)
        taken = jax.lax.dynamic_update_slice_in_dim(taken, some_taken, step, axis=1)
        return step + PICKS_PER_ROUND, left, index, taken, equal.any()

    shape = (num_groups, -(-num_picks // PICKS_PER_ROUND) * PICKS_PER_ROUND)
    left = jnp.where(valid, scores, -jnp.inf)
    state = (jnp.int32(0), left, jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf))
    *_, index, taken, tied = jax.lax.while_loop(unfinished, take_some, (*state, jnp.bool_(False)))
    index, taken = index[:, :num_picks], taken[:, :num_picks]
    found = taken > -jnp.inf
    return _Picks(jnp.where(found, index, 0), jnp.where(found, taken, 0), found), tied


def _pick_by_list(
    boxes: Array,
    scores: Array,
    valid: Array,
    decay: Callable[[Array], Array],
    score_floor: Real,
    num_picks: int,
) -> _Picks:
    """Does what `_pick` does, one pick a round; of equal scores the first in the list."""
    num_groups, num_boxes = scores.shape
    place = jnp.arange(num_boxes)[None, :]

    def unfinished(state: tuple) -> Array:
        step, boxes_left, _, _ = state
        return (step < num_picks) & (boxes_left.count > step).any()

    def take_one(state: tuple) -> tuple:
        step, old, index, taken = state
        at_place = jnp.take_along_axis(old.scores, old.order, axis=1)
        in_play = (place >= step) & (place < old.count[:, None])
        best = jnp.where(in_play, at_place, -jnp.inf).argmax(axis=1)[:, None]  # [G, 1]; the first
        box = jnp.take_along_axis(old.order, best, axis=1)
        index = jax.lax.dynamic_update_slice_in_dim(index, box, step, axis=1)
        score = jnp.take_along_axis(at_place, best, axis=1)
        taken = jax.lax.dynamic_update_slice_in_dim(taken, score, step, axis=1)

        displaced = jax.lax.dynamic_slice_in_dim(old.order, step, 1, axis=1)
        order = jnp.where(place == best, displaced, old.order)
        order = jax.lax.dynamic_update_slice_in_dim(order, box, step, axis=1)

        chosen = jnp.take_along_axis(boxes, box[:, :, None], axis=1)  # [G, 1, 4]
        scores = old.scores * decay(jax.vmap(iou)(chosen, boxes)[:, 0])
        below = jnp.take_along_axis(scores, order, axis=1) < score_floor
        gone = below & (place > step) & (place < old.count[:, None])
        order, count = _close_gaps(order, old.count, gone)
        return step + 1, _List(order, count, scores), index, taken

    first = jnp.argsort(~valid, axis=1, stable=True).astype(jnp.int32)  # valid ones, as they came
    start = _List(first, valid.sum(axis=1), jnp.where(valid, scores, 0))
    index = jnp.zeros((num_groups, num_picks), jnp.int32)
    state = (jnp.int32(0), start, index, jnp.zeros(index.shape, jnp.float32))
    _, left, index, taken = jax.lax.while_loop(unfinished, take_one, state)
    found = jnp.arange(num_picks)[None, :] < left.count[:, None]
    return _Picks(jnp.where(found, index, 0), jnp.where(found, taken, 0), found)


def _close_gaps(order: Array, count: Array, gone: Array) -> tuple[Array, Array]:
    """Removes places [G, N] from the list; the last boxes that stay move into the gaps.

    The first gap gets the last box, the second the one before it, as the official loop does.
    """
    num_places = order.shape[1]
    place = jnp.arange(num_places)[None, :]
    stays = ~gone & (place < count[:, None])
    count = count - gone.sum(axis=1)
    gap, moves = gone & (place < count[:, None]), stays & (place >= count[:, None])
    rank = jnp.cumsum(moves[:, ::-1], axis=1)[:, ::-1] - 1  # of the boxes that move, from the end
    group = jnp.arange(len(order))[:, None]
    slot = jnp.where(moves, rank, num_places)
    movers = jnp.zeros_like(order).at[group, slot].set(order, mode="drop")
    filling = jnp.take_along_axis(movers, jnp.maximum(jnp.cumsum(gap, axis=1) - 1, 0), axis=1)
    return jnp.where(gap, filling, order), count
