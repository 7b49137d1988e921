"""Programs to export: the network with BatchNorm folded, and detection with the run's suppression.

Weights are constants of a program. It computes in float32, whatever the run computed in.
B images, A anchors, C classes, K detections.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from m2det_jax import ops
from m2det_jax.detector.detector import Detector
from m2det_jax.model.folding import apply_folded
from m2det_jax.trained import Restored

PLATFORMS = ("cpu", "cuda", "tpu")
Arrays = dict[str, jax.Array]


def network_of(restored: Restored, *, grouped: bool = False) -> Callable[[jax.Array], Arrays]:
    """Returns uint8 [B, H, W, 3] -> class_logits [B, A, _] and box_deltas [B, A, 4].

    Args:
        grouped: see `model.folding.apply_folded`.
    """
    detector, variables = _plain(restored.detector), jax.device_get(restored.variables)

    def network(images: jax.Array) -> Arrays:
        images = detector.normalize(images)
        return apply_folded(detector.model, variables, images, grouped=grouped)

    return network


def boxes_and_scores_of(restored: Restored) -> Callable[[jax.Array], Arrays]:
    """Returns images [B, H, W, 3] -> boxes [B, A, 4] xyxy in their pixels, and scores [B, A, C].

    It is for other runtimes than XLA's.
    """
    detector, network = restored.detector, network_of(restored, grouped=True)

    def boxes_and_scores(images: jax.Array) -> Arrays:
        outputs = network(images)
        anchors = jnp.asarray(detector.anchors)[None]
        boxes = ops.decode(outputs["box_deltas"], anchors, detector.variances)
        return {
            "boxes": ops.clip(boxes, detector.resize.image_size),
            "scores": detector.class_scores(outputs["class_logits"]),
        }

    return boxes_and_scores


def detection_of(restored: Restored) -> Callable[[jax.Array, jax.Array], Arrays]:
    """Returns (uint8 [B, H, W, 3], lowest score []) -> boxes, scores, labels, valid [B, K, ...]."""
    detector, network = restored.detector, network_of(restored)

    def detection(images: jax.Array, threshold: jax.Array) -> Arrays:
        found = detector.at_threshold(threshold).postprocess(network(images))
        return found._asdict()

    return detection


def export_stablehlo(
    function: Callable[..., Arrays], image_size: tuple[int, int], *others: jax.ShapeDtypeStruct
) -> jax.export.Exported:
    """Exports a function of images for any batch size and for PLATFORMS.

    Args:
        function: its first argument is uint8 [B, H, W, 3].
        image_size: (H, W).
        others: of its other arguments.
    """
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.uint8)
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(images, *others)


def _plain(detector: Detector) -> Detector:
    model: Any = detector.model.clone(dtype=jnp.float32, remat=False)
    return dataclasses.replace(detector, model=model)
