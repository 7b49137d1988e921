"""VGG16 and VGG19 as in SSD: fc6 and fc7 are convolutions and pool5 keeps the resolution.

arXiv 1512.02325, section 3.1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from m2det_jax.model.layers import (
    NORM_MOMENTUM,
    ConvBlock,
    max_pool_2x2,
    max_pool_3x3,
    scaled_channels,
    shared_fields,
)

# By depth: the channels of the convolutions in stages 1 to 5, which are conv{stage}_{number}.
STAGES = {
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
FC_CHANNELS = 1024


class VGG(nn.Module):
    """VGG16 or VGG19 up to conv7. Input: RGB, normalised with ImageNet's mean and deviation.

    Every pooling rounds up, so the maps are ceil(H / 8) and ceil(H / 16) high for any H. The
    official code rounds up in pool3 alone. For sizes that are multiples of 4 the result is the same
    wherever that code runs (it fails where the deep map is not half as large as the shallow one).

    Attributes:
        depth: 16 or 19.
        width: factor on every number of channels (rounded to multiples of 8).
        norm: BatchNorm after the convolutions of stages 1 to 5, as in torchvision's vgg16_bn. conv6
            and conv7 keep a bias: they replace fully connected layers, which have no BatchNorm in
            vgg16_bn either.
        frozen_stages: the first stages, 0 to 5, that do not learn: they get no gradient, and their
            BatchNorm uses its running averages and does not change them.
        norm_momentum, norm_axis, dtype: see ConvBlock.
    """

    depth: int
    width: float = 1.0
    norm: bool = False
    frozen_stages: int = 0
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the maps of stage 4 (stride 8) and conv7 (stride 16) of images [B, H, W, 3]."""
        x = images
        for stage, channels in enumerate(STAGES[self.depth], start=1):
            if stage > 1:
                x = max_pool_2x2(x)
            x = self._stage(x, stage, channels, train)
            if stage == 4:
                shallow = x
        x = max_pool_3x3(x)
        x = self._block(FC_CHANNELS, "conv6", norm=False, dilation=6)(x, train=train)
        x = self._block(FC_CHANNELS, "conv7", norm=False, kernel_size=1)(x, train=train)
        return shallow, x

    def frozen_modules(self) -> tuple[str, ...]:
        """Returns the names of the submodules that do not learn."""
        return tuple(
            f"conv{stage}_{number}"
            for stage, channels in enumerate(STAGES[self.depth][: self.frozen_stages], start=1)
            for number in range(1, len(channels) + 1)
        )

    def _stage(self, x: jax.Array, stage: int, channels: tuple[int, ...], train: bool) -> jax.Array:
        frozen = stage <= self.frozen_stages
        for number, features in enumerate(channels, start=1):
            block = self._block(features, f"conv{stage}_{number}", norm=self.norm)
            x = block(x, train=train and not frozen)
        return jax.lax.stop_gradient(x) if frozen else x

    def _block(self, features: int, name: str, **options: Any) -> ConvBlock:
        return ConvBlock(
            scaled_channels(features, self.width),
            **shared_fields(self),
            name=name,
            **options,
        )


VGG16 = functools.partial(VGG, 16)
VGG19 = functools.partial(VGG, 19)
