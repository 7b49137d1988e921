"""Anchors fitted to the training boxes of a data set."""

import dataclasses
import logging

import numpy as np

from m2det_jax.build import anchor_sizes, make_anchors
from m2det_jax.check.figures import Split
from m2det_jax.config import Config
from m2det_jax.datasets.coverage import config_anchors
from m2det_jax.ops.anchor_fit import AnchorShapes, fit_anchors
from m2det_jax.pages import Fit

log = logging.getLogger("m2det_jax")


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
