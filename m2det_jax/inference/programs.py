"""Compiled functions of a trained detector: from views of pictures to detections.

B images of a batch, K detections of an image.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from m2det_jax import ops
from m2det_jax.build import make_views
from m2det_jax.data import ResizeSettings
from m2det_jax.detector.detector import Threshold
from m2det_jax.detector.views import MultiScale, Views
from m2det_jax.inference.pictures import View
from m2det_jax.metrics.detections import original_boxes
from m2det_jax.run import devices
from m2det_jax.trained import Restored


class PicturePrograms(Protocol):
    """What `PictureDetector` needs: programs from views of pictures to detections."""

    @property
    def resizes(self) -> tuple[ResizeSettings, ...]:
        """Input sizes at which every image is seen, and how it is brought to them."""

    @property
    def max_detections(self) -> int:
        """K."""

    @property
    def score_threshold(self) -> float:
        """Lowest score of config.eval, 0..1."""

    def detect_images(self, images: np.ndarray, threshold: Threshold) -> ops.Detections:
        """Detects in uint8 [B, H, W, 3]; returns Detections [B, K], boxes in their pixels."""

    def detect_views(
        self, views: Sequence[Sequence[View]], threshold: float, batch_size: int
    ) -> ops.Detections:
        """Detects in up to `batch_size` pictures; returns Detections [batch_size, K]."""

    def to_picture(
        self, boxes: np.ndarray, views: Sequence[View], size: tuple[int, int]
    ) -> np.ndarray:
        """Returns boxes [n, 4] of `detect_views` in pixels of the picture of (width, height)."""


class Programs:
    """Detects by the views of config.eval: each batch size is compiled once, for all thresholds.

    Attributes:
        resizes: input sizes at which every image is seen, and how it is brought to them.
        max_detections: K.
        score_threshold: that of config.eval.
    """

    def __init__(self, restored: Restored) -> None:
        self._detector, self._variables = restored.detector, restored.variables
        views = make_views(restored.config)
        self._multi = MultiScale(restored.detector, views) if views else None
        self.resizes: tuple[ResizeSettings, ...] = (restored.detector.resize,)
        if self._multi:
            self.resizes = self._multi.resizes
        self.max_detections = restored.config.eval.max_detections
        self.score_threshold = restored.config.eval.score_threshold
        self._plain = restored.detector.detect_above_fn()
        self._one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def detect_images(self, images: np.ndarray, threshold: Threshold) -> ops.Detections:
        """Starts to detect objects in uint8 [B, H, W, 3], by one view.

        Returns:
            Detections [B, K] on the devices, boxes in pixels of the images.
        """
        variables, sharding = self._placing(len(images))
        on_device = jax.device_put(images, sharding)
        return self._plain(variables, on_device, np.float32(threshold))

    def detect_views(
        self, views: Sequence[Sequence[View]], threshold: float, batch_size: int
    ) -> ops.Detections:
        """Starts to detect objects in up to `batch_size` pictures, each seen at all `resizes`.

        Returns:
            Detections [batch_size, K] on the devices, boxes as `to_picture` takes them; those of
            the first pictures, the rest is filling.
        """
        by_size = self._by_size(views, batch_size)
        if self._multi is None:
            (batch,) = by_size.values()
            return self.detect_images(batch["image"], threshold)
        variables, sharding = self._placing(batch_size)
        limit = np.float32(threshold)
        return self._multi.detect_batch(variables, by_size, sharding, limit)[0]

    def candidates(self, views: Sequence[Sequence[View]], batch_size: int) -> list[ops.Candidates]:
        """Starts the network on up to `batch_size` parts of pictures, each seen at all `resizes`.

        Returns:
            Candidates [batch_size, G, N] on the devices, of each view in turn, boxes in pixels of
            the pictures; those of the first parts, the rest is filling.
        """
        variables, sharding = self._placing(batch_size)
        by_size = self._by_size(views, batch_size)
        return self._parts.candidates(variables, by_size, sharding)[0]

    def suppress(self, candidates: ops.Candidates, threshold: float) -> ops.Detections:
        """Starts the suppression of candidates [B, G, N]; returns Detections [B, K]."""
        return self._parts.merge([candidates], np.float32(threshold))

    def to_picture(
        self, boxes: np.ndarray, views: Sequence[View], size: tuple[int, int]
    ) -> np.ndarray:
        """Returns boxes [n, 4] of `detect_views` in pixels of the picture, float32, cut to it.

        Args:
            views: of the picture.
            size: (width, height) of the picture.
        """
        scale, offset = np.ones(2, np.float32), np.zeros(2, np.float32)
        if self._multi is None:
            scale, offset = views[0].scale, views[0].offset
        return original_boxes(boxes, scale, offset, size).astype(np.float32)

    @functools.cached_property
    def _parts(self) -> MultiScale:
        """Sees parts of pictures by the views of config.eval."""
        own = self._detector.resize.image_size
        return self._multi or MultiScale(self._detector, Views(sizes=(own,), flip=False))

    def _by_size(
        self, views: Sequence[Sequence[View]], batch_size: int
    ) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        """Returns a batch for each input size."""
        at_sizes = zip(self.resizes, zip(*views, strict=True), strict=True)
        return {resize.image_size: batch_of(seen, batch_size) for resize, seen in at_sizes}

    def _placing(self, batch_size: int) -> tuple[dict[str, Any], jax.sharding.Sharding]:
        """Where a batch goes: to all devices of this process, or, where it cannot be split, to one.

        Returns:
            (the variables there, sharding of the images).
        """
        if jax.local_device_count() > 1 and batch_size % jax.local_device_count() == 0:
            return self._on_all
        return self._variables, self._one

    @functools.cached_property
    def _on_all(self) -> tuple[dict[str, Any], jax.sharding.Sharding]:
        replicated, by_batch = devices.data_mesh(jax.local_devices())
        return jax.device_put(self._variables, replicated), by_batch


def batch_of(views: Sequence[View], batch_size: int) -> dict[str, np.ndarray]:
    """Returns the views of one size as a batch; what is left of it repeats the last."""
    filled = [*views, *[views[-1]] * (batch_size - len(views))]
    return {
        "image": np.stack([view.image for view in filled]),
        "scale": np.stack([view.scale for view in filled]),
        "offset": np.stack([view.offset for view in filled]),
        "image_id": np.arange(batch_size, dtype=np.int32),
    }
