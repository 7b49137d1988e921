"""The objective: which anchors stand for which objects, and the losses of the outputs against that.

B images of the batch, A anchors, M objects per image (padded).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from m2det_jax import ops
from m2det_jax.detector.detector import Detector, Outputs

Batch = dict[str, Shaped[Array, "B ..."]]
Metrics = dict[str, Float[Array, ""]]

# What `losses_of` returns, in the order of figures in files. The first is minimised; the last is no
# loss, but what the others are divided by.
LOSSES = ("loss", "loss_class", "loss_box", "num_positives")


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Plain values that shape a step; see config.anchors, config.loss and config.optimizer."""

    positive_threshold: float
    negative_threshold: float
    loss_kind: str
    focal_alpha: float | tuple[float, ...]
    focal_gamma: float
    negative_ratio: float
    smooth_l1_beta: float
    box_weight: float
    ema_decay: float
    accumulation: int
    skip_nonfinite: bool = False
    norm_warmup: bool = False


def make_targets(detector: Detector, settings: StepSettings, batch: Batch) -> ops.Targets:
    """Matches each image's objects [B, M] to the anchors; returns targets [B, A]."""
    anchors = jnp.asarray(detector.anchors)

    def one_image(boxes: Array, labels: Array, mask: Array) -> ops.Targets:
        return ops.assign_targets(
            anchors,
            boxes,
            labels,
            mask,
            positive_threshold=settings.positive_threshold,
            negative_threshold=settings.negative_threshold,
            variances=detector.variances,
        )

    return jax.vmap(one_image)(batch["boxes"], batch["labels"], batch["mask"])


def losses_of(
    outputs: Outputs,
    targets: ops.Targets,
    settings: StepSettings,
    num_positives: Integer[Array, ""] | None = None,
) -> Metrics:
    """Returns the LOSSES of raw outputs against targets.

    Args:
        num_positives: see `ops.detection_losses`; None: those of the targets.
    """
    common: dict[str, Any] = dict(
        beta=settings.smooth_l1_beta, box_weight=settings.box_weight, num_positives=num_positives
    )
    logits, deltas = outputs["class_logits"], outputs["box_deltas"]
    if settings.loss_kind == "softmax":
        return ops.multibox_losses(
            logits, deltas, targets, negative_ratio=settings.negative_ratio, **common
        )
    alpha: float | Array = (
        jnp.asarray(settings.focal_alpha, jnp.float32)
        if isinstance(settings.focal_alpha, tuple)
        else settings.focal_alpha
    )
    return ops.detection_losses(
        logits, deltas, targets, alpha=alpha, gamma=settings.focal_gamma, **common
    )


def eval_losses(
    detector: Detector, settings: StepSettings, outputs: Outputs, batch: Batch
) -> Metrics:
    """Returns the losses of an evaluation batch; images with image_id -1 count nowhere."""
    targets = make_targets(detector, settings, batch)
    real = (batch["image_id"] >= 0)[:, None]  # [B, 1]
    targets = targets._replace(positive=targets.positive & real, negative=targets.negative & real)
    return losses_of(outputs, targets, settings)
