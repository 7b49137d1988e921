"""Coverage of a data set by the anchors of a config: which boxes an anchor reaches.

K boxes, A anchors.
"""

import dataclasses

import jax
import numpy as np

from m2det_jax import ops
from m2det_jax.build import make_anchors
from m2det_jax.config import Config
from m2det_jax.data.augment.drawing import map_image
from m2det_jax.data.augment.settings import ResizeSettings
from m2det_jax.data.index import DetectionIndex
from m2det_jax.model import feature_map_sizes
from m2det_jax.ops.coverage import best_anchors

_PADDING = 64  # boxes of a picture are padded to a multiple, so that few shapes are compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Anchors:
    """The anchors of a config with what matching needs."""

    boxes: np.ndarray  # float32 [A, 4], network pixels
    feature_maps: tuple[tuple[int, int], ...]
    positive_threshold: float
    negative_threshold: float

    def overlaps(self, boxes: np.ndarray) -> np.ndarray:
        """Returns the best IoU of every box [K, 4] with an anchor."""
        return best_anchors(boxes, self.boxes, self.feature_maps)[0]

    def positives(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Matches the boxes of one image as training does: (anchors, box of each), int [P]."""
        padded = np.zeros((-(-max(len(boxes), 1) // _PADDING) * _PADDING, 4), np.float32)
        padded[: len(boxes)] = boxes
        mask = np.arange(len(padded)) < len(boxes)
        thresholds = self.positive_threshold, self.negative_threshold
        matches = _match(self.boxes, padded, mask, thresholds)
        anchors = np.flatnonzero(np.asarray(matches.positive))
        return anchors, np.asarray(matches.box_index)[anchors]


@jax.jit(static_argnums=3)
def _match(
    anchors: np.ndarray, boxes: np.ndarray, mask: np.ndarray, thresholds: tuple[float, float]
) -> ops.Matches:
    positive, negative = thresholds
    return ops.match(anchors, boxes, mask, positive_threshold=positive, negative_threshold=negative)


def config_anchors(config: Config) -> Anchors:
    """Returns the anchors of a config with their thresholds."""
    height, width = config.data.image_size
    return Anchors(
        boxes=make_anchors(config),
        feature_maps=feature_map_sizes((height, width), config.model.num_scales),
        positive_threshold=config.anchors.positive_threshold,
        negative_threshold=config.anchors.negative_threshold,
    )


def network_boxes(index: DetectionIndex, resize: ResizeSettings) -> np.ndarray:
    """Returns all boxes as the network meets them without augmentation: float32 [K, 4], pixels."""
    sizes, which = np.unique(index.sizes, axis=0, return_inverse=True)
    maps = [map_image((int(width), int(height)), resize) for width, height in sizes]
    scale = np.array([pixel_map.scale for pixel_map in maps]).reshape(-1, 2)
    offset = np.array([pixel_map.offset for pixel_map in maps]).reshape(-1, 2)
    rows = np.repeat(which.reshape(-1), index.counts)  # [K], into sizes
    corners = index.boxes.reshape(-1, 2, 2) * scale[rows][:, None] + offset[rows][:, None]
    return corners.reshape(-1, 4).astype(np.float32)  # [K, 2, 2] -> [K, 4]
