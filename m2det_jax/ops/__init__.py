"""Array functions without side effects: boxes, anchors, matching, losses, suppression."""

from m2det_jax.ops.anchors import (
    retinanet_anchors,
    retinanet_sizes,
    spread_anchors,
    ssd_anchors,
    ssd_sizes,
)
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
from m2det_jax.ops.candidates import Candidates, merge_candidates, top_candidates
from m2det_jax.ops.losses import detection_losses, sigmoid_focal_loss, smooth_l1
from m2det_jax.ops.matching import Matches, Targets, assign_targets, match
from m2det_jax.ops.multibox import mine_hard_negatives, multibox_losses
from m2det_jax.ops.nms import Detections, multiclass_nms, nms, suppress
from m2det_jax.ops.soft_nms import multiclass_soft_nms, soft_nms, soft_suppress

__all__ = [
    "Candidates",
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
    "merge_candidates",
    "mine_hard_negatives",
    "multibox_losses",
    "multiclass_nms",
    "multiclass_soft_nms",
    "nms",
    "retinanet_anchors",
    "retinanet_sizes",
    "sigmoid_focal_loss",
    "smooth_l1",
    "soft_nms",
    "soft_suppress",
    "spread_anchors",
    "ssd_anchors",
    "ssd_sizes",
    "suppress",
    "top_candidates",
    "xyxy_to_cxcywh",
]
