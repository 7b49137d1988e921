"""Multi-scale testing: an image at several input sizes and mirrored, detections merged.

The network is the one that was trained; at another size its maps, and with them the anchors, are
more or fewer, but as large in pixels. The boxes of every view of an image are brought to pixels of
the original image and go through the suppression of the config together. Each size is compiled
once. B batch, G groups, N candidates of a group, K detections of an image.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m2det_jax import ops
from m2det_jax.data import DetectionIndex, ResizeSettings
from m2det_jax.detector.detector import Detector, Threshold
from m2det_jax.detector.objective import StepSettings, eval_losses
from m2det_jax.detector.reading import Detected, Reading, open_batches
from m2det_jax.errors import InputError
from m2det_jax.metrics.detections import one_behind, to_original
from m2det_jax.model import feature_map_sizes
from m2det_jax.run import devices

_ON_DEVICE = ("image", "boxes", "labels", "mask", "image_id", "scale", "offset")


@dataclasses.dataclass(frozen=True)
class Views:
    """How to look at an image.

    Attributes:
        sizes: of the input, (height, width) in pixels.
        flip: each is also seen mirrored.
    """

    sizes: tuple[tuple[int, int], ...]
    flip: bool


def detector_at(detector: Detector, image_size: tuple[int, int]) -> Detector:
    """Returns the detector for another input size: the same network, its anchors on other maps.

    They are those of a training at that size, see `build.make_anchors`.

    Raises:
        InputError: the size does not carry the network's scales.
    """
    if image_size == detector.resize.image_size:
        return detector
    num_scales = detector.model.num_scales
    try:
        new_maps = feature_map_sizes(image_size, num_scales)
    except ValueError as error:
        raise InputError(f"config.eval.test_sizes: {error}") from None
    anchors = ops.spread_anchors(
        detector.anchors,
        feature_map_sizes(detector.resize.image_size, num_scales),
        new_feature_maps=new_maps,
        new_image_size=image_size,
    )
    resize = dataclasses.replace(detector.resize, image_size=image_size)
    return dataclasses.replace(detector, anchors=anchors, resize=resize)


def make_view_step(detector: Detector, settings: StepSettings | None) -> Callable:
    """Returns the jitted (variables, batch, mirror) -> (candidates, loss terms) of one size.

    batch: that of `data.eval_batches`. mirror: bool scalar, whether to see the images mirrored;
    the candidates [B, G, N] are in pixels of the original images either way. Loss terms: None
    without settings, and meant for images that are not mirrored.
    """

    @jax.jit
    def view_step(
        variables: dict, batch: dict, mirror: jax.Array
    ) -> tuple[ops.Candidates, dict | None]:
        images = jnp.where(mirror, batch["image"][:, :, ::-1], batch["image"])
        outputs: Any = detector.model.apply(variables, detector.normalize(images), train=False)
        found = detector.candidates(outputs)
        x1, y1, x2, y2 = jnp.moveaxis(found.boxes, -1, 0)  # each [B, G, N]
        width = detector.resize.image_size[1]
        x1, x2 = jnp.where(mirror, width - x2, x1), jnp.where(mirror, width - x1, x2)
        scale = jnp.tile(batch["scale"], 2)[:, None, None]  # [B, 1, 1, 4]
        offset = jnp.tile(batch["offset"], 2)[:, None, None]
        boxes = (jnp.stack([x1, y1, x2, y2], axis=-1) - offset) / scale
        terms = None if settings is None else eval_losses(detector, settings, outputs, batch)
        return found._replace(boxes=boxes), terms

    return view_step


class MultiScale:
    """Detects the objects of a data set by several views of each image."""

    def __init__(
        self, detector: Detector, views: Views, settings: StepSettings | None = None
    ) -> None:
        """Prepares the programs, which are compiled when they are first needed.

        Args:
            settings: compute the losses, too, always at the detector's own size, which is then
                looked at even where it is none of the views.
        """
        own = detector.resize.image_size
        sizes = dict.fromkeys((*views.sizes, own) if settings else views.sizes)
        self._views = views
        self._detectors = {size: detector_at(detector, size) for size in sizes}
        self._steps = {
            size: make_view_step(at_size, settings if size == own else None)
            for size, at_size in self._detectors.items()
        }

        @jax.jit
        def merge(
            candidates: Sequence[ops.Candidates], threshold: Threshold | None = None
        ) -> ops.Detections:
            suppression = detector.suppression
            if threshold is not None:
                suppression = suppression.at_threshold(threshold)

            def one_image(candidates: Sequence[ops.Candidates]) -> ops.Detections:
                return suppression.detections(ops.merge_candidates(candidates))

            return jax.vmap(one_image)(candidates)

        self._merge = merge

    def detect(
        self,
        variables: dict,
        index: DetectionIndex,
        reading: Reading,
        *,
        sharding: jax.sharding.Sharding,
        mark: Callable[[str, Any], None] = lambda stage, value: None,
    ) -> Detected:
        """Yields for every batch its images' detections, in original pixels, and its loss terms.

        Args:
            mark: called at the end of each stage, as `evaluation.Stages.mark`.
        """
        with open_batches(index, self.resizes, reading) as batches:
            dispatched = (
                self.detect_batch(
                    variables, dict(zip(self._detectors, images, strict=True)), sharding, mark=mark
                )
                for images in batches
            )
            for found, ids, terms in one_behind(dispatched):
                found, ids = devices.fetch((found, ids))
                identity = {"scale": np.ones((len(ids), 2)), "offset": np.zeros((len(ids), 2))}
                yield to_original(found, {"image_id": ids} | identity, index), terms

    @property
    def resizes(self) -> tuple[ResizeSettings, ...]:
        """How an image is brought to each input size, in order."""
        return tuple(at_size.resize for at_size in self._detectors.values())

    def detect_batch(
        self,
        variables: dict,
        by_size: dict,
        sharding: jax.sharding.Sharding,
        threshold: Threshold | None = None,
        mark: Callable[[str, Any], None] = lambda stage, value: None,
    ) -> tuple[ops.Detections, jax.Array, dict | None]:
        """Returns detections [B, K] in original pixels, image_id [B] and loss terms of a batch.

        Args:
            by_size: a batch of `data.eval_batches` for each input size; without settings of the
                losses image, image_id, scale and offset suffice.
            threshold: lowest score, in place of the detector's; compiled once for all.
            mark: as in `detect`.
        """
        mark("load", None)
        candidates, ids, terms = self.candidates(variables, by_size, sharding)
        mark("network", candidates)
        found = self._merge(candidates, threshold)
        mark("nms", found)
        return found, ids, terms

    def candidates(
        self, variables: dict, by_size: dict, sharding: jax.sharding.Sharding
    ) -> tuple[list[ops.Candidates], jax.Array, dict | None]:
        """Returns candidates [B, G, N] of every view, in original pixels, image_id [B] and loss
        terms of a batch; the arguments are those of `detect_batch`."""
        candidates, terms = [], None
        # An image that cannot be read at one size is none at any.
        ids = np.minimum.reduce([batch["image_id"] for batch in by_size.values()])
        for size, batch in by_size.items():
            batch = {key: batch[key] for key in _ON_DEVICE if key in batch} | {"image_id": ids}
            batch = devices.put_batch(batch, sharding)
            for mirror in (False, True) if self._views.flip else (False,):
                found, losses = self._steps[size](variables, batch, mirror)
                terms = losses if losses is not None and not mirror else terms
                if size in self._views.sizes:
                    candidates.append(found)
                else:
                    break
        return candidates, batch["image_id"], terms

    def merge(
        self, candidates: Sequence[ops.Candidates], threshold: Threshold | None = None
    ) -> ops.Detections:
        """Starts the suppression of candidates [B, G, N] of several views together.

        Args:
            threshold: as in `detect_batch`.

        Returns:
            Detections [B, K] on the devices.
        """
        return self._merge(candidates, threshold)
