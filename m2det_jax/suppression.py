"""How the boxes of an image become its detections: plain values, and the ops that they choose."""

import dataclasses

import jax

from m2det_jax import ops


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Plain values of config.eval, where each is explained."""

    nms: str
    score_threshold: float
    iou_threshold: float
    pre_nms_top_k: int
    soft_iou_threshold: float
    soft_sigma: float
    soft_score_floor: float
    soft_candidates: int
    max_per_class: int
    max_detections: int
    class_agnostic: bool

    def at_threshold(self, threshold: float) -> "Suppression":
        """Returns the same, but that no detection has a score below a threshold, 0..1."""
        floor = max(threshold, self.soft_score_floor)
        return dataclasses.replace(self, score_threshold=threshold, soft_score_floor=floor)

    def candidates(self, boxes: jax.Array, scores: jax.Array) -> ops.Candidates:
        """Returns what of the boxes [A, 4] and class scores [A, C] of an image takes part."""
        per_class = self.nms != "hard" and not self.class_agnostic
        count = self.soft_candidates if per_class else self.pre_nms_top_k
        return ops.top_candidates(boxes, scores, count=count, per_class=per_class)

    def detections(self, candidates: ops.Candidates) -> ops.Detections:
        """Returns the detections [K] of an image, of its candidates or of several views'."""
        common = dict(
            score_threshold=self.score_threshold,
            max_per_class=self.max_per_class,
            max_outputs=self.max_detections,
        )
        if self.nms == "hard":
            return ops.suppress(
                candidates,
                iou_threshold=self.iou_threshold,
                class_agnostic=self.class_agnostic,
                **common,
            )
        return ops.soft_suppress(
            candidates,
            method=self.nms.removeprefix("soft_"),
            iou_threshold=self.soft_iou_threshold,
            sigma=self.soft_sigma,
            score_floor=self.soft_score_floor,
            **common,
        )
