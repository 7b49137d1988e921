"""ResNet backbones (arXiv 1512.03385) with the deep map at stride 16."""

import functools

import jax
from flax import linen as nn

from m2det_jax.model.layers import NORM_MOMENTUM, ConvBlock, max_pool_3x3

# Blocks in layers 1 to 4.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
# Layer 4 keeps the resolution of layer 3, so that its map, the deep one, is at stride 16. (The
# official code instead keeps layer 3 at stride 8 and halves in layer 4, four times the work there.)
STRIDES = (1, 2, 2, 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    features: int
    strides: int = 1
    norm_momentum: float = NORM_MOMENTUM
    dtype: jax.typing.DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        block = functools.partial(ConvBlock, norm_momentum=self.norm_momentum, dtype=self.dtype)
        y = block(self.features, strides=self.strides, name="conv1")(x, train=train)
        y = block(self.features, relu=False, name="conv2")(y, train=train)
        if x.shape != y.shape:
            shortcut = block(self.features, 1, self.strides, relu=False, name="shortcut")
            x = shortcut(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet-18 or -34 up to layer 4. Input: RGB, normalised with ImageNet's mean and deviation.

    Attributes:
        depth: 18 or 34.
        width: factor on every number of channels (rounded to multiples of 8).
        norm: ignored; a ResNet always has BatchNorm.
        frozen_stages: the first stages that do not learn: 1 the stem, 2 to 5 layers 1 to 4.
        norm_momentum, dtype: see ConvBlock.
    """

    depth: int
    width: float = 1.0
    norm: bool = True
    frozen_stages: int = 0
    norm_momentum: float = NORM_MOMENTUM
    dtype: jax.typing.DTypeLike = "float32"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return the maps of layer 2 (stride 8) and layer 4 (stride 16) of images [B, H, W, 3]."""
        options = dict(norm_momentum=self.norm_momentum, dtype=self.dtype)
        stem = ConvBlock(self._channels(64), 7, 2, name="stem", **options)
        x = max_pool_3x3(stem(images, train=train and self.frozen_stages < 1), stride=2)
        x = jax.lax.stop_gradient(x) if self.frozen_stages >= 1 else x
        for layer, (blocks, strides) in enumerate(zip(BLOCKS[self.depth], STRIDES, strict=True), 1):
            frozen = layer < self.frozen_stages
            for number in range(blocks):
                block = BasicBlock(
                    self._channels(32 * 2**layer),
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
        """Return the names of the submodules that do not learn."""
        layers = [
            f"layer{layer}_{number + 1}"
            for layer, blocks in enumerate(BLOCKS[self.depth], 1)
            for number in range(blocks)
            if layer < self.frozen_stages
        ]
        return ("stem", *layers) if self.frozen_stages else ()

    def _channels(self, features: int) -> int:
        return max(8, 8 * round(features * self.width / 8))
