"""Losses: focal loss on the class logits, smooth L1 on the box deltas.

Everything is computed in float32, whatever the dtype of the input is. Letters: B batch, A anchors,
C classes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from m2det_jax.ops.boxes import ArrayLike, Real
from m2det_jax.ops.matching import Targets


@jax.jit
def sigmoid_focal_loss(
    logits: Num[ArrayLike, "*shape"],
    onehot_targets: Num[ArrayLike, "*shape"] | Bool[ArrayLike, "*shape"],
    *,
    alpha: Real | Num[ArrayLike, "*#shape"] = 0.25,
    gamma: Real = 2.0,
) -> Float[Array, "*shape"]:
    """Returns the focal loss of every logit (arXiv 1708.02002, equation 5).

    -alpha_t (1 - p_t)^gamma log(p_t). For a target of 1, p_t is sigmoid(logit) and alpha_t is
    alpha; for a target of 0 they are 1 - sigmoid(logit) and 1 - alpha. Loss and gradient are finite
    for every finite logit.

    Args:
        logits: any shape.
        onehot_targets: 0 or 1, or bool.
        alpha: one number, or an array that is broadcast to the logits.
        gamma: 0 or more.
    """
    logits = jnp.asarray(logits, jnp.float32)
    is_target = jnp.asarray(onehot_targets) > 0.5
    z = jnp.where(is_target, logits, -logits)
    # -log(p_t) = softplus(-z) and -log(1 - p_t) = softplus(z) share their tail log(1 + e^-|z|),
    # and the power is taken in logarithms, because 0^gamma has no finite gradient. One selection
    # makes all three parts, which keeps the gradient at z = 0 right; abs and maximum would not.
    is_right = z > 0
    tail = jnp.log1p(jnp.exp(jnp.where(is_right, -z, z)))
    cross_entropy = jnp.where(is_right, 0, -z) + tail
    modulation = jnp.exp(-gamma * (jnp.where(is_right, z, 0) + tail))
    return (jnp.where(is_target, alpha, 1 - alpha) * modulation * cross_entropy).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="beta")
def smooth_l1(
    pred: Num[ArrayLike, "*shape"], target: Num[ArrayLike, "*shape"], *, beta: Real = 1.0
) -> Float[Array, "*shape"]:
    """Returns smooth L1 of every element: d^2 / (2 beta) for |d| < beta, else |d| - beta / 2.

    d is pred - target. beta has the unit of pred; 0 gives the absolute difference.

    Raises:
        ValueError: if beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta: expected 0 or more, got {beta}")
    distance = jnp.abs(jnp.asarray(pred, jnp.float32) - jnp.asarray(target, jnp.float32))
    if beta == 0:
        return distance
    # The limit comes before the square: with an extreme prediction neither branch overflows.
    near = jnp.minimum(distance, beta)
    return near * near * (0.5 / beta) + (distance - near)


@functools.partial(jax.jit, static_argnames="beta")
def sum_box_losses(
    box_deltas: Num[ArrayLike, "*batch 4"], targets: Targets, *, beta: Real = 1.0
) -> Float[Array, ""]:
    """Returns the sum of smooth L1 over the four deltas of all positive anchors."""
    distance = smooth_l1(box_deltas, targets.deltas, beta=beta).sum(axis=-1)
    return jnp.where(targets.positive, distance, 0).sum()


@functools.partial(jax.jit, static_argnames="beta")
def detection_losses(
    class_logits: Num[ArrayLike, "B A C"],
    box_deltas: Num[ArrayLike, "B A 4"],
    targets: Targets,
    *,
    alpha: Real | Num[ArrayLike, "C"] = 0.25,
    gamma: Real = 2.0,
    beta: Real = 1.0,
    box_weight: Real = 1.0,
    num_positives: Real | None = None,
) -> dict[str, Float[Array, ""]]:
    """Returns the sums of both losses over the batch, divided by its number of positive anchors.

    Args:
        class_logits: [B, A, C]; one sigmoid for each class, no background class.
        box_deltas: [B, A, 4], as `encode` makes them.
        targets: those of the whole batch: fields [B, A] and [B, A, 4].
        alpha: weight of the positive logits in the focal loss; one number, or one for each class.
        gamma: exponent of the focal loss.
        beta: where smooth L1 changes from a parabola to a line, in units of the deltas.
        box_weight: factor on loss_box, in `loss` alone.
        num_positives: the divisor in place of the number of this batch. It is the number of a
            larger batch of which this one is a part: the gradients of the parts then add up to
            that of the larger batch.

    Returns:
        float32 scalars: `loss` = loss_class + box_weight * loss_box; `loss_class`, over all
        anchors that are positive or negative; `loss_box`, over the positive ones;
        `num_positives`, the number in this batch. The divisor is at least 1.
    """
    # A comparison and no look-up: it fuses into the loss, so that no one-hot array is in memory.
    classes = jnp.arange(class_logits.shape[-1], dtype=jnp.int32)
    labels = jnp.where(targets.positive, targets.labels, -1)
    onehot = labels[:, :, None] == classes[None, None, :]  # [B, A, C]
    if jnp.ndim(alpha):
        alpha = jnp.asarray(alpha, jnp.float32)[None, None, :]
    focal = sigmoid_focal_loss(class_logits, onehot, alpha=alpha, gamma=gamma).sum(axis=-1)
    used = targets.positive | targets.negative
    return normalised_losses(
        jnp.where(used, focal, 0).sum(),
        sum_box_losses(box_deltas, targets, beta=beta),
        targets,
        box_weight=box_weight,
        num_positives=num_positives,
    )


def normalised_losses(
    class_sum: Float[Array, ""],
    box_sum: Float[Array, ""],
    targets: Targets,
    *,
    box_weight: Real,
    num_positives: Real | None,
) -> dict[str, Float[Array, ""]]:
    """Returns what `detection_losses` does, from the sums of both losses over the batch."""
    counted = targets.positive.sum(dtype=jnp.float32)
    divisor = jnp.maximum(counted if num_positives is None else num_positives, 1)
    loss_class, loss_box = class_sum / divisor, box_sum / divisor
    return {
        "loss": (loss_class + box_weight * loss_box).astype(jnp.float32),
        "loss_class": loss_class.astype(jnp.float32),
        "loss_box": loss_box.astype(jnp.float32),
        "num_positives": counted,
    }
