"""VGG16 as in SSD: fc6 and fc7 are convolutions and pool5 keeps the resolution.

arXiv 1512.02325, section 3.1.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from m2det_jax.model.layers import NORM_MOMENTUM, ConvBlock, max_pool_2x2, max_pool_3x3

# Channels of the convolutions of stages 1 to 5, named conv{stage}_{number}.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
FC_CHANNELS = 1024


class VGG16(nn.Module):
    """VGG16 up to conv7. Input: RGB, normalised with the ImageNet mean and standard deviation.

    Every pooling rounds up, so the maps are ceil(H / 8) and ceil(H / 16) high for any H. The
    official code rounds up in pool3 alone: for every size that is a multiple of 4 the result is the
    same wherever that code can run (it stops where the deep map is not half the shallow one).

    Attributes:
        width: factor on every number of channels (rounded to multiples of 8); 1.0 is VGG16.
        norm: BatchNorm after the convolutions of stages 1 to 5, as in torchvision's vgg16_bn. conv6
            and conv7 keep a bias: they stand for fully connected layers, which have no BatchNorm
            there either.
        frozen_stages: the first stages, 0 to 5, that get no gradient and whose norms use and keep
            their running averages.
        norm_momentum, dtype: see ConvBlock.
    """

    width: float = 1.0
    norm: bool = False
    frozen_stages: int = 0
    norm_momentum: float = NORM_MOMENTUM
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return the maps of conv4_3 (stride 8) and conv7 (stride 16) of images [B, H, W, 3]."""
        x = images
        for stage, channels in enumerate(STAGES, start=1):
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
        """Return the names of the submodules that do not learn."""
        return tuple(
            f"conv{stage}_{number}"
            for stage, channels in enumerate(STAGES[: self.frozen_stages], start=1)
            for number in range(1, len(channels) + 1)
        )

    def _stage(self, x: jax.Array, stage: int, channels: tuple[int, ...], train: bool) -> jax.Array:
        frozen = stage <= self.frozen_stages
        for number, features in enumerate(channels, start=1):
            block = self._block(features, f"conv{stage}_{number}", norm=self.norm)
            x = block(x, train=train and not frozen)
        return jax.lax.stop_gradient(x) if frozen else x

    def _block(self, features: int, name: str, **options) -> ConvBlock:
        scaled = max(8, 8 * round(features * self.width / 8))
        return ConvBlock(
            scaled, norm_momentum=self.norm_momentum, dtype=self.dtype, name=name, **options
        )
