"""The loss of SSD and of the official M2Det code: softmax over classes and a background class.

Most anchors see background. Per image only its hardest, a few for every positive anchor, take part
(hard negative mining; arXiv 1512.02325, section 2.2). Computed in float32 whatever dtype comes in.
Letters: B batch, A anchors, D = 1 + C: the background and the classes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from m2det_jax.ops.boxes import ArrayLike, Real
from m2det_jax.ops.losses import sum_box_losses
from m2det_jax.ops.matching import Targets


@jax.jit
def mine_hard_negatives(
    hardness: Num[ArrayLike, "*batch A"],
    positive: Bool[ArrayLike, "*batch A"],
    negative: Bool[ArrayLike, "*batch A"],
    *,
    ratio: Real = 3.0,
) -> Bool[Array, "*batch A"]:
    """Selects the hardest negatives of each image: floor(ratio * its number of positives).

    At most A - 1, as in the official code, and at most the negatives that there are. An image
    without positives has none selected.

    Args:
        hardness: What ranks them, such as the loss; the highest first. Of equal ones the lower
            index comes first; NaN counts as hardest, so that it is not hidden.
        positive: Anchors with an object.
        negative: Anchors that may be selected.
        ratio: Negatives per positive.
    """
    hardness = jnp.asarray(hardness, jnp.float32)
    negative = jnp.asarray(negative)
    hardness = jnp.where(jnp.isnan(hardness), jnp.inf, hardness)
    hardness = jnp.where(negative, hardness, -jnp.inf)
    num_anchors = hardness.shape[-1]
    wanted = jnp.floor(ratio * jnp.asarray(positive).sum(axis=-1, keepdims=True))
    wanted = jnp.minimum(wanted.astype(jnp.int32), num_anchors - 1)  # [..., 1]
    # One sort of values and one cumulative sum: the rank of every anchor would take two sorts.
    falling = jnp.sort(hardness, axis=-1, descending=True)
    last = jnp.take_along_axis(falling, jnp.maximum(wanted - 1, 0), axis=-1)
    harder = hardness > last
    equal = hardness == last
    places = wanted - harder.sum(axis=-1, keepdims=True)
    first = equal & (jnp.cumsum(equal, axis=-1) <= places)
    return (harder | first) & negative & (wanted > 0)


@functools.partial(jax.jit, static_argnames="beta")
def multibox_losses(
    class_logits: Num[ArrayLike, "B A D"],
    box_deltas: Num[ArrayLike, "B A 4"],
    targets: Targets,
    *,
    negative_ratio: Real = 3.0,
    beta: Real = 1.0,
    box_weight: Real = 1.0,
    num_positives: Real | None = None,
) -> dict[str, Float[Array, ""]]:
    """Sums both losses over the batch and divides them by its number of positive anchors.

    The class loss is the cross-entropy of the positives and of the hardest negatives of each image
    (`mine_hard_negatives` by their own cross-entropy). Hence an image without objects adds
    nothing, and a batch without objects has loss 0: the official rule.

    Args:
        class_logits: [B, A, D]; index 0 is the background, index 1 + k the class with label k.
        box_deltas: [B, A, 4], as `encode` writes them.
        targets: Of the whole batch: fields [B, A] and [B, A, 4]. Anchors that are neither positive
            nor negative are never mined (official: there are none).
        negative_ratio: Hard negatives per positive anchor of an image.
        beta: Where smooth L1 turns from a parabola to a line, in units of the deltas.
        box_weight: Factor on loss_box in `loss` alone.
        num_positives: Divide by this count instead: that of a larger batch of which this is a
            part, so that gradients accumulated over its parts add up to its own.

    Returns:
        float32 scalars `loss`, `loss_class`, `loss_box`, `num_positives`, as `detection_losses`.
    """
    counted = targets.positive.sum(dtype=jnp.float32)
    divisor = jnp.maximum(counted if num_positives is None else num_positives, 1)

    logits = jnp.asarray(class_logits, jnp.float32)
    wanted = jnp.where(targets.positive, targets.labels + 1, 0)  # [B, A]
    # Compared, not looked up: a gradient that scatters into [B, A, D] is slow.
    onehot = wanted[:, :, None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
    entropy = jax.nn.logsumexp(logits, axis=-1) - jnp.where(onehot, logits, 0).sum(axis=-1)
    hard = mine_hard_negatives(
        jax.lax.stop_gradient(entropy), targets.positive, targets.negative, ratio=negative_ratio
    )
    loss_class = jnp.where(targets.positive | hard, entropy, 0).sum() / divisor
    loss_box = sum_box_losses(box_deltas, targets, beta=beta) / divisor
    return {
        "loss": (loss_class + box_weight * loss_box).astype(jnp.float32),
        "loss_class": loss_class.astype(jnp.float32),
        "loss_box": loss_box.astype(jnp.float32),
        "num_positives": counted,
    }
