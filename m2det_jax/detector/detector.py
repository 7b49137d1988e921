"""The detector: a model with all that turns uint8 images into boxes, and back.

B batch, A anchors, C classes, K detections per image, H, W.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from m2det_jax import ops
from m2det_jax.data import ResizeSettings
from m2det_jax.model import PRIOR, M2Det

# Of the network: "class_logits" [B, A, C], or [B, A, 1 + C] with a background, and "box_deltas"
# [B, A, 4].
Outputs = dict[str, Float[Array, "B A _"]]
Detect = Callable[[dict, UInt8[Array, "B H W 3"]], ops.Detections]
# A score, 0..1; an array under jit, where one program serves all of them.
Threshold: TypeAlias = float | np.floating | jax.Array
DetectAbove = Callable[[dict, UInt8[Array, "B H W 3"], Threshold], ops.Detections]


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Plain values of config.eval, where each is explained."""

    nms: str
    score_threshold: Threshold
    iou_threshold: float
    pre_nms_top_k: int
    soft_iou_threshold: float
    soft_sigma: float
    soft_score_floor: Threshold
    soft_candidates: int
    max_per_class: int
    max_detections: int
    class_agnostic: bool

    def at_threshold(self, threshold: Threshold) -> "Suppression":
        """Returns the same, but that no detection has a score below a threshold, 0..1."""
        floor: Threshold
        if isinstance(threshold, jax.Array):
            floor = jnp.maximum(threshold, self.soft_score_floor)
        else:
            floor = max(threshold, self.soft_score_floor)
        return dataclasses.replace(self, score_threshold=threshold, soft_score_floor=floor)

    def candidates(self, boxes: Float[Array, "A 4"], scores: Float[Array, "A C"]) -> ops.Candidates:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """A model and what it needs to be used rightly; built from the config, kept in checkpoints.

    Attributes:
      model: the Flax module; its variables travel separately.
      anchors: float32 [A, 4] xyxy, pixels of the network input.
      class_names: name of each class id.
      resize: size of the network input and how an image is brought to it.
      mean, std: RGB, 0..255; the network sees (image - mean) / std.
      channel_order: "rgb" or "bgr", the order in which the network takes the channels.
      variances: of centre and size in the box encoding.
      background: the class logits are those of a softmax, whose index 0 is the background; else
        each class has a sigmoid.
      suppression: how the boxes of an image become its detections.
    """

    model: M2Det
    anchors: np.ndarray
    class_names: tuple[str, ...]
    resize: ResizeSettings
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str
    variances: tuple[float, float]
    background: bool
    suppression: Suppression

    def normalize(self, images: Shaped[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Returns the network input, float32 [B, H, W, 3], of uint8 RGB images of that shape."""
        mean = jnp.asarray(self.mean, jnp.float32).reshape(1, 1, 1, 3)
        std = jnp.asarray(self.std, jnp.float32).reshape(1, 1, 1, 3)
        normalized = (images.astype(jnp.float32) - mean) / std
        return normalized[..., ::-1] if self.channel_order == "bgr" else normalized

    @property
    def class_prior(self) -> float | None:
        """What the class head's initial biases are to give: see `model.fill_variables`."""
        return None if self.background else PRIOR

    def class_scores(self, logits: Float[Array, "... D"]) -> Float[Array, "... C"]:
        """Returns the probability of every class, 0..1 [..., C], of the model's class logits."""
        if self.background:
            return jax.nn.softmax(logits, axis=-1)[..., 1:]
        return jax.nn.sigmoid(logits)

    def candidates(self, outputs: Outputs) -> ops.Candidates:
        """Returns candidates [B, G, N] (boxes xyxy in network pixels) of the raw outputs."""
        anchors = jnp.asarray(self.anchors)

        def one_image(logits: jax.Array, deltas: jax.Array) -> ops.Candidates:  # [A, C], [A, 4]
            boxes = ops.decode(deltas, anchors, self.variances)
            return self.suppression.candidates(
                ops.clip(boxes, self.resize.image_size), self.class_scores(logits)
            )

        return jax.vmap(one_image)(outputs["class_logits"], outputs["box_deltas"])

    def postprocess(self, outputs: Outputs) -> ops.Detections:
        """Returns detections [B, K] (boxes xyxy in network pixels) of the model's raw outputs."""
        return jax.vmap(self.suppression.detections)(self.candidates(outputs))

    def detect_fn(self) -> Detect:
        """Returns the jitted function (variables, uint8 [B, H, W, 3]) -> Detections [B, K].

        Equal detectors have the same function, so that it is compiled once.
        """
        return _detect_fn(self)

    def detect_above_fn(self) -> DetectAbove:
        """As `detect_fn`, whose third argument replaces the score threshold of the suppression.

        It is compiled once for all thresholds.
        """
        return _detect_above_fn(self)

    def at_threshold(self, threshold: Threshold) -> "Detector":
        """Returns the same, but that no detection has a score below a threshold, 0..1."""
        return dataclasses.replace(self, suppression=self.suppression.at_threshold(threshold))

    def _key(self) -> tuple:
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        anchors = (self.anchors.shape, self.anchors.dtype.str, self.anchors.tobytes())
        return tuple(anchors if value is self.anchors else value for value in values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Detector) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@functools.lru_cache(maxsize=8)
def _detect_fn(detector: Detector) -> Detect:
    def detect(variables: dict, images: jax.Array) -> ops.Detections:
        outputs: Any = detector.model.apply(variables, detector.normalize(images), train=False)
        return detector.postprocess(outputs)

    return jax.jit(detect)


@functools.lru_cache(maxsize=8)
def _detect_above_fn(detector: Detector) -> DetectAbove:
    def detect(variables: dict, images: jax.Array, threshold: jax.Array) -> ops.Detections:
        outputs: Any = detector.model.apply(variables, detector.normalize(images), train=False)
        return detector.at_threshold(threshold).postprocess(outputs)

    return jax.jit(detect)
