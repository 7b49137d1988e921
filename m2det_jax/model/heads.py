"""Prediction heads. Their outputs are flattened in the order of the anchors.

There are two forms. "conv" has one 3x3 convolution for each scale (M2Det). "retinanet" has four
3x3 convolutions with ReLU and one that predicts, which all scales share (arXiv 1708.02002,
section 4).

B batch, A anchors (scale, row, column, cell anchor), K anchors per cell, C class outputs.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

FORMS = ("conv", "retinanet")
TOWER_DEPTH = 4
TOWER_CHANNELS = 256

_Layer = Callable[[jax.Array], jax.Array]


class BoxHead(nn.Module):
    """Predicts the four box deltas of every anchor; `form` is one of FORMS."""

    anchors_per_cell: int
    dtype: DTypeLike = jnp.float32
    form: str = "conv"

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Returns float32 [B, A, 4] from the maps of the scales, the largest first."""
        return _predict(maps, self.anchors_per_cell, 4, self.dtype, self.form)


class ClassHead(nn.Module):
    """Predicts the class logits of every anchor; `form` is one of FORMS."""

    anchors_per_cell: int
    num_class_outputs: int
    dtype: DTypeLike = jnp.float32
    form: str = "conv"

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Returns float32 [B, A, C] from the maps of the scales, the largest first."""
        return _predict(maps, self.anchors_per_cell, self.num_class_outputs, self.dtype, self.form)


def is_class_output(path: Sequence[str]) -> bool:
    """Says whether the parameter at a path below "params" depends on the classes."""
    return path[0] == "class_head" and not path[1].startswith("tower_")


def _predict(
    maps: Sequence[jax.Array], anchors_per_cell: int, outputs: int, dtype: DTypeLike, form: str
) -> jax.Array:
    layers = _shared_layers if form == "retinanet" else _layer_per_scale
    predictors = layers(len(maps), anchors_per_cell * outputs, dtype)
    flat = [
        # [B, h, w, K * outputs] -> [B, h * w * K, outputs]
        predict(features).reshape(features.shape[0], -1, outputs)
        for predict, features in zip(predictors, maps, strict=True)
    ]
    return jnp.concatenate(flat, axis=1)


def _layer_per_scale(scales: int, channels: int, dtype: DTypeLike) -> list[_Layer]:
    return [_Output(channels, dtype, name=f"scale_{scale}") for scale in range(1, scales + 1)]


def _shared_layers(scales: int, channels: int, dtype: DTypeLike) -> list[_Layer]:
    tower = [
        nn.Conv(TOWER_CHANNELS, (3, 3), padding=1, dtype=dtype, name=f"tower_{i}")
        for i in range(1, TOWER_DEPTH + 1)
    ]
    output = _Output(channels, dtype, name="output")

    def predict(features: jax.Array) -> jax.Array:
        for layer in tower:
            features = nn.relu(layer(features))
        return output(features)

    return [predict] * scales


class _Output(nn.Module):
    """A 3x3 convolution that multiplies in `dtype`, and adds up and returns float32.

    In bfloat16, logits near 4 would have steps of 1/32, and half of the ranks would be ties.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
        return y + bias.reshape(1, 1, 1, -1)
