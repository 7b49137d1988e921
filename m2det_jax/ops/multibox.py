"""Multibox loss of SSD and of the official M2Det code: softmax over a background and all classes.

Most anchors see background. Only the hardest of them take part, a few for every positive anchor of
the image (hard negative mining; arXiv 1512.02325, section 2.2). Everything is computed in float32,
whatever the dtype of the input is. Letters: B batch, A anchors, D = 1 + C: background and classes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from m2det_jax.ops.boxes import ArrayLike, Real
from m2det_jax.ops.losses import normalised_losses, sum_box_losses
from m2det_jax.ops.matching import Targets


@jax.jit
def mine_hard_negatives(
    hardness: Num[ArrayLike, "*batch A"],
    positive: Bool[ArrayLike, "*batch A"],
    negative: Bool[ArrayLike, "*batch A"],
    *,
    ratio: Real = 3.0,
) -> Bool[Array, "*batch A"]:
    """Selects the hardest negatives of each image.

    Their number is floor(ratio * number of positives), but at most A - 1, as in the official code,
    and at most the number of negatives. In an image without positives none is selected.

    Args:
        hardness: such as the loss; the highest are selected, the lower index if they are equal.
            NaN is the hardest, so that it does not stay hidden.
        positive: anchors with an object.
        negative: anchors that may be selected.
        ratio: negatives per positive.
    """
    hardness = jnp.asarray(hardness, jnp.float32)
    negative = jnp.asarray(negative)
    hardness = jnp.where(jnp.isnan(hardness), jnp.inf, hardness)
    hardness = jnp.where(negative, hardness, -jnp.inf)
    num_anchors = hardness.shape[-1]
    wanted = jnp.floor(ratio * jnp.asarray(positive).sum(axis=-1, keepdims=True))
    wanted = jnp.minimum(wanted.astype(jnp.int32), num_anchors - 1)  # [..., 1]
    # One sort of values and one cumulative sum; the rank of every anchor would take two sorts.
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
    """Returns the sums of both losses over the batch, divided by its number of positive anchors.

    The class loss is the cross-entropy of the positives and of the hardest negatives of each image
    (`mine_hard_negatives`; the hardness is that cross-entropy). So an image without objects adds
    nothing, and a batch without objects has the loss 0, as in the official code.

    Args:
        class_logits: [B, A, D]; index 0 is the background, index 1 + k the class with label k.
        box_deltas: [B, A, 4], as `encode` makes them.
        targets: those of the whole batch: fields [B, A] and [B, A, 4]. Anchors that are neither
            positive nor negative are never selected (the official code has none).
        negative_ratio: hard negatives per positive anchor of an image.
        beta, box_weight, num_positives: as for `detection_losses`.

    Returns:
        float32 scalars `loss`, `loss_class`, `loss_box`, `num_positives`, as `detection_losses`.
    """
    logits = jnp.asarray(class_logits, jnp.float32)
    wanted = jnp.where(targets.positive, targets.labels + 1, 0)  # [B, A]
    # A comparison and no look-up, whose gradient would scatter into [B, A, D], which is slow.
    onehot = wanted[:, :, None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None, :]
    entropy = jax.nn.logsumexp(logits, axis=-1) - jnp.where(onehot, logits, 0).sum(axis=-1)
    hard = mine_hard_negatives(
        jax.lax.stop_gradient(entropy), targets.positive, targets.negative, ratio=negative_ratio
    )
    return normalised_losses(
        jnp.where(targets.positive | hard, entropy, 0).sum(),
        sum_box_losses(box_deltas, targets, beta=beta),
        targets,
        box_weight=box_weight,
        num_positives=num_positives,
    )
