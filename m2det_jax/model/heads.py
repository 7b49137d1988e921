"""Prediction heads: one 3x3 convolution per scale, flattened in the order of the anchors.

B batch, A anchors (scale, row, column, cell anchor), K anchors per cell, C class outputs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn


class BoxHead(nn.Module):
    """Predict the four box deltas of every anchor."""

    anchors_per_cell: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Return float32 [B, A, 4] from the maps of the scales, the largest first."""
        return _predict(maps, self.anchors_per_cell, 4, self.dtype)


class ClassHead(nn.Module):
    """Predict the class logits of every anchor."""

    anchors_per_cell: int
    num_class_outputs: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Return float32 [B, A, C] from the maps of the scales, the largest first."""
        return _predict(maps, self.anchors_per_cell, self.num_class_outputs, self.dtype)


def _predict(
    maps: Sequence[jax.Array], anchors_per_cell: int, outputs: int, dtype: jnp.dtype
) -> jax.Array:
    flat = []
    for scale, features in enumerate(maps, start=1):
        channels = anchors_per_cell * outputs
        conv = nn.Conv(channels, (3, 3), padding=1, dtype=dtype, name=f"scale_{scale}")
        # [B, h, w, K * outputs] -> [B, h * w * K, outputs]
        flat.append(conv(features).reshape(features.shape[0], -1, outputs))
    return jnp.concatenate(flat, axis=1).astype(jnp.float32)
