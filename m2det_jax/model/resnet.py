"""ResNet backbones (arXiv 1512.03385) with the deep map at stride 16."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from m2det_jax.model.layers import (
    NORM_MOMENTUM,
    ConvBlock,
    max_pool_3x3,
    scaled_channels,
    shared_fields,
)

# Numbers of blocks in layers 1 to 4; from depth 50 on the blocks are bottlenecks.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BOTTLENECK_DEPTH = 50
# Layer 4 keeps the resolution of layer 3, so that its map, the deep one, is at stride 16.
STRIDES = (1, 2, 2, 1)
# The official code keeps layer 3 at stride 8 and halves in layer 4 instead. Layer 3, the longest,
# then takes four times the work.
OFFICIAL_STRIDES = (1, 2, 1, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, it is a 1x1 convolution."""

    features: int
    strides: int = 1
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block: Callable[..., ConvBlock] = functools.partial(ConvBlock, **shared_fields(self))
        y = block(self.features, strides=self.strides, name="conv1")(x, train=train)
        y = block(self.features, relu=False, name="conv2")(y, train=train)
        return _add_shortcut(x, y, block, self.strides, train)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times `features`, and a shortcut.

    The stride is in the 3x3 convolution, as in torchvision and in the official code (in the paper
    it is in the first convolution).
    """

    features: int
    strides: int = 1
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block: Callable[..., ConvBlock] = functools.partial(ConvBlock, **shared_fields(self))
        y = block(self.features, 1, name="conv1")(x, train=train)
        y = block(self.features, strides=self.strides, name="conv2")(y, train=train)
        y = block(4 * self.features, 1, relu=False, name="conv3")(y, train=train)
        return _add_shortcut(x, y, block, self.strides, train)


def _add_shortcut(
    x: jax.Array, y: jax.Array, block: Callable[..., ConvBlock], strides: int, train: bool
) -> jax.Array:
    features = y.shape[-1]
    if strides != 1 or x.shape[-1] != features:
        x = block(features, 1, strides, relu=False, name="shortcut")(x, train=train)
    return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet up to layer 4. Input: RGB, normalised with ImageNet's mean and deviation.

    Attributes:
        depth: a key of BLOCKS.
        width: factor on every number of channels (rounded to multiples of 8).
        frozen_stages: the first stages, 0 to 5, that do not learn. Stage 1 is the stem, stages 2
            to 5 are layers 1 to 4.
        official_stride: OFFICIAL_STRIDES instead of STRIDES; the parameters are the same.
        norm_momentum, norm_axis, dtype: see ConvBlock.
    """

    depth: int
    width: float = 1.0
    frozen_stages: int = 0
    official_stride: bool = False
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the maps of layer 2 (stride 8) and layer 4 (stride 16) of images [B, H, W, 3]."""
        options = shared_fields(self)
        stem = ConvBlock(scaled_channels(64, self.width), 7, 2, name="stem", **options)
        x = max_pool_3x3(stem(images, train=train and self.frozen_stages < 1), stride=2)
        x = jax.lax.stop_gradient(x) if self.frozen_stages >= 1 else x
        make_block = BasicBlock if self.depth < BOTTLENECK_DEPTH else Bottleneck
        all_strides = OFFICIAL_STRIDES if self.official_stride else STRIDES
        for layer, (blocks, strides) in enumerate(
            zip(BLOCKS[self.depth], all_strides, strict=True), 1
        ):
            frozen = layer < self.frozen_stages
            for number in range(blocks):
                block = make_block(
                    scaled_channels(32 * 2**layer, self.width),
                    strides if number == 0 else 1,
                    name=f"layer{layer}_{number + 1}",
                    **options,
                )
                x = block(x, train=train and not frozen)
            x = jax.lax.stop_gradient(x) if frozen else x
            if layer == 2:
                shallow = x
        return shallow, x

    def frozen_modules(self) -> tuple[str, ...]:
        """Returns the names of the submodules that do not learn."""
        layers = [
            f"layer{layer}_{number + 1}"
            for layer, blocks in enumerate(BLOCKS[self.depth], 1)
            for number in range(blocks)
            if layer < self.frozen_stages
        ]
        return ("stem", *layers) if self.frozen_stages else ()
