"""MobileNet v1 (arXiv 1704.04861) and v2 (arXiv 1801.04381) with the deep map at stride 16.

The blocks have the numbers of torchvision's `features`; the stem is number 0.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from m2det_jax.model.depthwise import DepthwiseConv
from m2det_jax.model.layers import NORM_MOMENTUM, batch_norm, shared_fields

# The last halving of both is left out: so all layers of a pretrained network are used, and the last
# map, the richest, is at stride 16.
# v1: (channels, strides) of features_1 to features_13; in the paper features_12 has stride 2.
BLOCKS_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 1),) * 2,
)
# v2: (expansion, channels, blocks, strides of the first block) of features_1 to features_17; in the
# paper the stage of 160 channels has stride 2.
STAGES_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)
LAST_CHANNELS_V2 = 1280
# By version: the last blocks at strides 2, 4, 8, 16 and, in the paper, 32.
STAGE_ENDS = {1: (1, 3, 5, 11, 13), 2: (1, 3, 6, 13, 18)}
SHALLOW_STAGE = 3


class MobileNet(nn.Module):
    """MobileNet v1 or v2 without the classifier. Input: RGB, normalised with ImageNet's values.

    Attributes:
        version: 1 or 2.
        width: the papers' width multiplier. `divisible_channels` rounds the channels. v2's last
            layer never gets fewer than LAST_CHANNELS_V2, as in the paper.
        frozen_stages: the first stages, 0 to 5, that do not learn; they end at STAGE_ENDS.
        norm_momentum, norm_axis, dtype: see ConvBlock.
    """

    version: int
    width: float = 1.0
    frozen_stages: int = 0
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the last map at stride 8 and the last map (stride 16) of images [B, H, W, 3]."""
        ends = STAGE_ENDS[self.version]
        num_frozen = self._num_frozen()
        x = images
        for index, feature in enumerate(self._features()):
            x = feature(x, train=train and index >= num_frozen)
            x = jax.lax.stop_gradient(x) if index == num_frozen - 1 else x
            if index == ends[SHALLOW_STAGE - 1]:
                shallow = x
        return shallow, x

    def frozen_modules(self) -> tuple[str, ...]:
        """Returns the names of the submodules that do not learn."""
        return tuple(f"features_{index}" for index in range(self._num_frozen()))

    def _num_frozen(self) -> int:
        return (0, *(end + 1 for end in STAGE_ENDS[self.version]))[self.frozen_stages]

    def _features(self) -> list[nn.Module]:
        options = shared_fields(self)
        channels = divisible_channels(32 * self.width)
        features: list[nn.Module] = [Conv6(channels, 3, 2, name="features_0", **options)]
        for block, fields in self._blocks():
            features.append(block(*fields, name=f"features_{len(features)}", **options))
        if self.version == 2:
            channels = divisible_channels(LAST_CHANNELS_V2 * max(1.0, self.width))
            features.append(Conv6(channels, name=f"features_{len(features)}", **options))
        return features

    def _blocks(self) -> Iterator[tuple[type[nn.Module], tuple[int, ...]]]:
        """Yields the class of every block between stem and end with its first fields."""
        if self.version == 1:
            for channels, strides in BLOCKS_V1:
                yield SeparableBlock, (divisible_channels(channels * self.width), strides)
        else:
            for expansion, channels, blocks, strides in STAGES_V2:
                for number in range(blocks):
                    first = (divisible_channels(channels * self.width), expansion)
                    yield InvertedResidual, (*first, strides if number == 0 else 1)


def divisible_channels(channels: float) -> int:
    """Returns the nearest multiple of 8 that is at least 8 and at least 90% of `channels`.

    This is the rule of the authors' code, of torchvision and of timm.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SeparableBlock(nn.Module):
    """v1's block: a depthwise 3x3 convolution and a 1x1 convolution."""

    features: int
    strides: int = 1
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        options = shared_fields(self)
        x = Conv6(None, 3, self.strides, name="depthwise", **options)(x, train=train)
        return Conv6(self.features, name="pointwise", **options)(x, train=train)


class InvertedResidual(nn.Module):
    """v2's block: 1x1 to `expansion` times the channels, depthwise 3x3, 1x1 without ReLU.

    It adds its input where the shapes agree. With an expansion of 1 it has no first convolution.
    """

    features: int
    expansion: int
    strides: int = 1
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        options = shared_fields(self)
        channels = x.shape[-1]
        y = x
        if self.expansion != 1:
            y = Conv6(channels * self.expansion, name="expand", **options)(y, train=train)
        y = Conv6(None, 3, self.strides, name="depthwise", **options)(y, train=train)
        y = Conv6(self.features, relu6=False, name="project", **options)(y, train=train)
        return x + y if self.strides == 1 and channels == self.features else y


class Conv6(nn.Module):
    """A convolution without bias, BatchNorm and, unless told not to, ReLU6 (min(relu(x), 6)).

    Attributes:
        features: number of output channels. None: depthwise, one filter for each input channel.
        kernel_size, strides, norm_momentum, norm_axis, dtype: see ConvBlock. A depthwise kernel is
            always 3.
        relu6: end with ReLU6.
    """

    features: int | None
    kernel_size: int = 1
    strides: int = 1
    relu6: bool = True
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.features is None:
            x = DepthwiseConv(self.strides, self.dtype, name="conv")(x)
        else:
            x = nn.Conv(
                self.features,
                (self.kernel_size, self.kernel_size),
                strides=self.strides,
                padding=self.kernel_size // 2,
                use_bias=False,
                dtype=self.dtype,
                name="conv",
            )(x)
        x = batch_norm(self, train=train, name="norm")(x)
        return nn.relu6(x) if self.relu6 else x
