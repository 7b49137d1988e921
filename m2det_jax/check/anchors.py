"""Anchors of a config against the boxes of a data set, and better ones fitted to them."""

import dataclasses
import logging

import jax
import numpy as np

from m2det_jax import ops
from m2det_jax.build import anchor_sizes, make_anchors
from m2det_jax.check.figures import Split
from m2det_jax.config import Config
from m2det_jax.model import feature_map_sizes
from m2det_jax.ops.anchor_fit import AnchorShapes, fit_anchors
from m2det_jax.ops.coverage import best_anchors
from m2det_jax.pages import Fit

log = logging.getLogger("m2det_jax")

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


def fit_to(config: Config, splits: dict[str, Split]) -> Fit:
    """Fits anchors to the training boxes and measures them on all boxes, with what is printed."""

    def build(shapes: AnchorShapes) -> np.ndarray:
        sizes, ratios = shapes
        anchors = dataclasses.replace(config.anchors, sizes=sizes, aspect_ratios=ratios)
        return make_anchors(dataclasses.replace(config, anchors=anchors))

    def coverage(shapes: AnchorShapes) -> dict[str, tuple[float, float]]:
        anchors = dataclasses.replace(now, boxes=build(shapes))
        found = {name: anchors.overlaps(split.boxes) for name, split in splits.items()}
        return {name: _share_and_mean(o, now.positive_threshold) for name, o in found.items()}

    now = config_anchors(config)
    start = AnchorShapes(anchor_sizes(config), tuple(config.anchors.aspect_ratios))
    log.info("fitting anchors to %d training boxes", len(splits["train"].boxes))
    shapes = fit_anchors(
        splits["train"].boxes,
        start,
        build=build,
        feature_maps=now.feature_maps,
        positive_threshold=now.positive_threshold,
    )
    before, after = coverage(start), coverage(shapes)
    # The search looks at a sample: what counts is all training boxes.
    better = after["train"] > before["train"]
    lines = (
        f"--config.anchors.sizes='{shapes.sizes}'",
        f"--config.anchors.aspect_ratios='{shapes.aspect_ratios}'",
    )
    return Fit(better, tuple(line.replace(" ", "") for line in lines), before, after)


def _share_and_mean(overlap: np.ndarray, threshold: float) -> tuple[float, float]:
    if not len(overlap):
        return float("nan"), float("nan")
    return float((overlap >= threshold).mean()), float(overlap.mean())
