"""Losses: focal loss on the class logits, smooth L1 on the box deltas.

Computed in float32 whatever dtype comes in. Letters: B batch, A anchors, C classes.
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
    """Focal loss of every logit (arXiv 1708.02002, equation 5).

    -alpha_t (1 - p_t)^gamma log(p_t), where p_t is sigmoid(logit) and alpha_t is alpha at a
    target of 1, and both are one minus that at a target of 0. Targets are 0 or 1 (or bool);
    gamma >= 0; alpha is one number, or an array that is broadcast against the logits. Loss and
    gradient are finite for every finite logit.
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
    """Smooth L1 of every element: d^2 / (2 beta) for |d| < beta, else |d| - beta / 2.

    beta is in the unit of pred; 0 gives the absolute difference.

    Raises:
        ValueError: If beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta: expected 0 or more, got {beta}")
    distance = jnp.abs(jnp.asarray(pred, jnp.float32) - jnp.asarray(target, jnp.float32))
    if beta == 0:
        return distance
    # Cut at beta before it is squared, so that a wild prediction overflows in neither branch.
    near = jnp.minimum(distance, beta)
    return near * near * (0.5 / beta) + (distance - near)


@functools.partial(jax.jit, static_argnames="beta")
def sum_box_losses(
    box_deltas: Num[ArrayLike, "*batch 4"], targets: Targets, *, beta: Real = 1.0
) -> Float[Array, ""]:
    """Sums smooth L1 over the four deltas of all positive anchors."""
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
    """Sums both losses over the batch and divides them by its number of positive anchors.

    Args:
        class_logits: [B, A, C], one sigmoid a class, no background class.
        box_deltas: [B, A, 4], as `encode` writes them.
        targets: Of the whole batch: fields [B, A] and [B, A, 4].
        alpha: Weight of the positive logits in the focal loss; one number, or one a class.
        gamma: Exponent of the focal loss.
        beta: Where smooth L1 turns from a parabola to a line, in units of the deltas.
        box_weight: Factor on loss_box in `loss` alone.
        num_positives: Divide by this count instead: that of a larger batch of which this is a
            part, so that gradients accumulated over its parts add up to its own.

    Returns:
        float32 scalars: `loss` = loss_class + box_weight * loss_box; `loss_class`, over all
        anchors that are positive or negative; `loss_box`, over the positive ones;
        `num_positives`, those counted in this batch. The divisor is 1 at least.
    """
    counted = targets.positive.sum(dtype=jnp.float32)
    divisor = jnp.maximum(counted if num_positives is None else num_positives, 1)

    # Compared, not looked up: the one-hot targets fuse into the loss and never fill memory.
    classes = jnp.arange(class_logits.shape[-1], dtype=jnp.int32)
    labels = jnp.where(targets.positive, targets.labels, -1)
    onehot = labels[:, :, None] == classes[None, None, :]  # [B, A, C]
    if jnp.ndim(alpha):
        alpha = jnp.asarray(alpha, jnp.float32)[None, None, :]
    focal = sigmoid_focal_loss(class_logits, onehot, alpha=alpha, gamma=gamma).sum(axis=-1)
    used = targets.positive | targets.negative
    loss_class = jnp.where(used, focal, 0).sum() / divisor

    loss_box = sum_box_losses(box_deltas, targets, beta=beta) / divisor
    return {
        "loss": (loss_class + box_weight * loss_box).astype(jnp.float32),
        "loss_class": loss_class.astype(jnp.float32),
        "loss_box": loss_box.astype(jnp.float32),
        "num_positives": counted,
    }
