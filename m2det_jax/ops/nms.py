"""Non-maximum suppression: from many overlapping scored boxes to one box an object.

Greedy and exact: boxes are taken from the highest score down (the lower index first if equal),
and a box goes if its IoU with one that was taken is above the threshold. All shapes are fixed, so
everything runs under jit; batch by vmap. Letters: N boxes, A anchors, C classes, K outputs.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Num

from m2det_jax.ops.boxes import ArrayLike, Real, iou
from m2det_jax.ops.candidates import Candidates, top_candidates
from m2det_jax.ops.detections import Detections, first_detections, first_kept

# Boxes are settled this many at a time: bounds memory at _TILE * N overlaps, and allows to stop
# when the outputs are full. Larger tiles mean fewer steps, which is what a GPU wants.
_TILE = 512


@functools.partial(jax.jit, static_argnames="max_outputs")
def nms(
    boxes: Num[ArrayLike, "N 4"],
    scores: Num[ArrayLike, "N"],
    *,
    iou_threshold: Real,
    max_outputs: int,
    score_threshold: Real = -jnp.inf,
) -> tuple[Int32[Array, "K"], Bool[Array, "K"]]:
    """Selects boxes regardless of class.

    Args:
        boxes: xyxy.
        scores: Any range; NaN counts as no box.
        iou_threshold: A box goes if its IoU with a box that stays is above this.
        max_outputs: K. May be larger than N.
        score_threshold: Only boxes with a score above this take part.

    Returns:
        Indices into boxes, highest score first, and which of them are valid; the others are 0.
    """
    boxes, scores = jnp.asarray(boxes, jnp.float32), jnp.asarray(scores, jnp.float32)
    if scores.shape[0] == 0:
        return jnp.zeros((max_outputs,), jnp.int32), jnp.zeros((max_outputs,), bool)
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    sorted_scores, order = jax.lax.top_k(scores, scores.shape[0])  # equal: lower index first
    keep = _greedy_keep(
        boxes[order], None, sorted_scores > score_threshold, iou_threshold, max_outputs
    )
    rank, valid = first_kept(keep, max_outputs)
    return jnp.where(valid, order[rank], 0).astype(jnp.int32), valid


@functools.partial(
    jax.jit, static_argnames=("pre_nms_top_k", "max_outputs", "class_agnostic", "max_per_class")
)
def multiclass_nms(
    boxes: Num[ArrayLike, "A 4"],
    scores: Num[ArrayLike, "A C"],
    *,
    iou_threshold: Real = 0.5,
    score_threshold: Real = 0.05,
    pre_nms_top_k: int = 1000,
    max_outputs: int = 300,
    class_agnostic: bool = False,
    max_per_class: int = 0,
) -> Detections:
    """Turns scores of every anchor and class into the detections of one image.

    Args:
        boxes: xyxy.
        scores: Probabilities, or anything that ranks.
        iou_threshold: A box goes if its IoU with a box of its class that stays is above this.
        score_threshold: Only scores above this take part.
        pre_nms_top_k: Only so many (anchor, class) pairs of the image, the highest, take part.
        max_outputs: K.
        class_agnostic: Boxes of all classes suppress each other.
        max_per_class: At most so many detections of a class; 0: no limit.
    """
    return suppress(
        top_candidates(boxes, scores, count=pre_nms_top_k, per_class=False),
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        max_per_class=max_per_class,
        max_outputs=max_outputs,
        class_agnostic=class_agnostic,
    )


@functools.partial(jax.jit, static_argnames=("max_per_class", "max_outputs", "class_agnostic"))
def suppress(
    candidates: Candidates,
    *,
    iou_threshold: Real = 0.5,
    score_threshold: Real = 0.05,
    max_per_class: int = 0,
    max_outputs: int = 300,
    class_agnostic: bool = False,
) -> Detections:
    """Turns the candidates of one image, in one group by falling score, into its detections.

    The other args are those of `multiclass_nms`.
    """
    boxes, scores, labels = (field[0] for field in candidates)  # [1, N, ...] -> [N, ...]
    keep = _greedy_keep(
        boxes,
        None if class_agnostic else labels,
        scores > score_threshold,
        iou_threshold,
        scores.shape[0] if max_per_class else max_outputs,  # a full class keeps boxes that go later
    )
    return first_detections(
        boxes, scores, labels, keep, max_per_class=max_per_class, max_outputs=max_outputs
    )


def _greedy_keep(
    boxes: Array, groups: Array | None, valid: Array, iou_threshold: Real, max_outputs: int
) -> Array:
    """Says which of the boxes [N], sorted by falling score, survive.

    Boxes suppress only within their group. Stops when max_outputs boxes are kept: what comes
    after the tile that holds the last of them is False.
    """
    num_boxes = boxes.shape[0]
    tile = min(_TILE, num_boxes)
    padding = -num_boxes % tile
    boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
    groups = None if groups is None else jnp.pad(groups, (0, padding), constant_values=-1)
    alive = jnp.pad(valid, (0, padding))
    position = jnp.arange(num_boxes + padding)

    def unfinished(state: tuple[Array, Array]) -> Array:
        start, alive = state
        kept = (alive & (position < start)).sum()
        return (start < num_boxes) & (kept < max_outputs)

    def settle_tile(state: tuple[Array, Array]) -> tuple[Array, Array]:
        start, alive = state
        rows = jax.lax.dynamic_slice_in_dim(boxes, start, tile)
        suppresses = iou(rows, boxes) > iou_threshold  # [tile, N]
        if groups is not None:
            row_groups = jax.lax.dynamic_slice_in_dim(groups, start, tile)
            suppresses &= row_groups[:, None] == groups[None, :]
        within = jax.lax.dynamic_slice_in_dim(suppresses, start, tile, axis=1)
        keep = _settle(within, jax.lax.dynamic_slice_in_dim(alive, start, tile))
        later = position >= start + tile
        alive = alive & ~(later & (suppresses & keep[:, None]).any(axis=0))
        return start + tile, jax.lax.dynamic_update_slice_in_dim(alive, keep, start, 0)

    start, alive = jax.lax.while_loop(unfinished, settle_tile, (jnp.int32(0), alive))
    return (alive & (position < start))[:num_boxes]


def _settle(suppresses: Array, alive: Array) -> Array:
    """Greedy suppression among T boxes as a fixed point: kept is alive and hit by no kept before.

    Each round settles at least one more box from the front, so that the fixed point is reached in
    T rounds at most, is the only one, and is what the greedy loop gives. In practice the rounds
    are as many as the longest chain of boxes of which each hits the next: a handful.
    """
    size = alive.shape[0]
    before = jnp.arange(size)[:, None] < jnp.arange(size)[None, :]
    suppresses = suppresses & before

    def changed(state: tuple[Array, Array]) -> Array:
        old, new = state
        return (old != new).any()

    def one_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, keep = state
        return keep, alive & ~(suppresses & keep[:, None]).any(axis=0)

    return jax.lax.while_loop(changed, one_round, one_round((alive, alive)))[1]
