"""The detector: a model with all that turns uint8 images into boxes, and back.

B batch, A anchors, C classes, K detections per image, H, W.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from m2det_jax import ops
from m2det_jax.anchor_layout import anchors_per_cell, make_anchors
from m2det_jax.data import ResizeSettings
from m2det_jax.datasets import fill_colour
from m2det_jax.model import PRIOR, M2Det
from m2det_jax.suppression import Suppression


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

    def normalize(self, images: jax.Array) -> jax.Array:
        """Returns the network input, float32 [B, H, W, 3], of uint8 RGB images of that shape."""
        mean = jnp.asarray(self.mean, jnp.float32).reshape(1, 1, 1, 3)
        std = jnp.asarray(self.std, jnp.float32).reshape(1, 1, 1, 3)
        normalized = (images.astype(jnp.float32) - mean) / std
        return normalized[..., ::-1] if self.channel_order == "bgr" else normalized

    @property
    def class_prior(self) -> float | None:
        """What the class head's initial biases are to give: see `model.fill_variables`."""
        return None if self.background else PRIOR

    def class_scores(self, logits: jax.Array) -> jax.Array:
        """Returns the probability of every class, 0..1 [..., C], of the model's class logits."""
        if self.background:
            return jax.nn.softmax(logits, axis=-1)[..., 1:]
        return jax.nn.sigmoid(logits)

    def candidates(self, outputs: dict[str, jax.Array]) -> ops.Candidates:
        """Returns candidates [B, G, N] (boxes xyxy in network pixels) of the raw outputs."""
        anchors = jnp.asarray(self.anchors)

        def one_image(logits, deltas):  # [A, C], [A, 4]
            boxes = ops.decode(deltas, anchors, self.variances)
            return self.suppression.candidates(
                ops.clip(boxes, self.resize.image_size), self.class_scores(logits)
            )

        return jax.vmap(one_image)(outputs["class_logits"], outputs["box_deltas"])

    def postprocess(self, outputs: dict[str, jax.Array]) -> ops.Detections:
        """Returns detections [B, K] (boxes xyxy in network pixels) of the model's raw outputs."""
        return jax.vmap(self.suppression.detections)(self.candidates(outputs))

    def detect_fn(self) -> Callable[[dict, jax.Array], ops.Detections]:
        """Returns the jitted function (variables, uint8 [B, H, W, 3]) -> Detections [B, K].

        Equal detectors have the same function, so that it is compiled once.
        """
        return _detect_fn(self)

    def _key(self) -> tuple:
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        anchors = (self.anchors.shape, self.anchors.dtype.str, self.anchors.tobytes())
        return tuple(anchors if value is self.anchors else value for value in values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Detector) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@functools.lru_cache(maxsize=8)
def _detect_fn(detector: Detector) -> Callable[[dict, jax.Array], ops.Detections]:
    def detect(variables, images):
        outputs = detector.model.apply(variables, detector.normalize(images), train=False)
        return detector.postprocess(outputs)

    return jax.jit(detect)


def build_detector(config: ConfigDict, class_names: tuple[str, ...]) -> Detector:
    """Builds the detector that a config describes.

    Raises:
      ValueError: the input size does not carry that many scales, or the anchors do not fit them.
    """
    image_size = tuple(config.data.image_size)
    model_config = config.model.to_dict()
    del model_config["backbone_weights"]
    background = config.loss.kind == "softmax"
    model = M2Det(
        **model_config | {"dtype": jnp.dtype(config.model.dtype)},
        num_class_outputs=len(class_names) + background,
        anchors_per_cell=anchors_per_cell(config),
    )
    return Detector(
        model=model,
        anchors=make_anchors(config),
        class_names=tuple(class_names),
        resize=ResizeSettings(image_size, config.data.resize, fill_colour(config)),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        channel_order=config.data.channel_order,
        variances=tuple(config.anchors.variances),
        background=background,
        suppression=make_suppression(config),
    )


def make_suppression(config: ConfigDict) -> Suppression:
    """Returns the plain values of config.eval that choose among the boxes of an image."""
    names = [field.name for field in dataclasses.fields(Suppression)]
    return Suppression(**{name: config.eval[name] for name in names})
