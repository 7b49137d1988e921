"""Pure functions on arrays: boxes, anchors, matching, losses, suppression."""

from m2det_jax.ops.anchors import retinanet_anchors, retinanet_sizes, ssd_anchors, ssd_sizes
from m2det_jax.ops.boxes import (
    area,
    ciou,
    clip,
    cxcywh_to_xyxy,
    decode,
    diou,
    encode,
    giou,
    iou,
    xyxy_to_cxcywh,
)
from m2det_jax.ops.losses import detection_losses, sigmoid_focal_loss, smooth_l1
from m2det_jax.ops.matching import Matches, Targets, assign_targets, match
from m2det_jax.ops.multibox import mine_hard_negatives, multibox_losses
from m2det_jax.ops.nms import Detections, multiclass_nms, nms

__all__ = [
    "Detections",
    "Matches",
    "Targets",
    "area",
    "assign_targets",
    "ciou",
    "clip",
    "cxcywh_to_xyxy",
    "decode",
    "detection_losses",
    "diou",
    "encode",
    "giou",
    "iou",
    "match",
    "mine_hard_negatives",
    "multibox_losses",
    "multiclass_nms",
    "nms",
    "retinanet_anchors",
    "retinanet_sizes",
    "sigmoid_focal_loss",
    "smooth_l1",
    "ssd_anchors",
    "ssd_sizes",
    "xyxy_to_cxcywh",
]
