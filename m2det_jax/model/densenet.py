"""DenseNet backbones (arXiv 1608.06993, the BC form) with the deep map at stride 16."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from m2det_jax.model.layers import (
    NORM_MOMENTUM,
    ConvBlock,
    avg_pool_2x2,
    batch_norm,
    max_pool_3x3,
    scaled_channels,
    shared_fields,
)

# Numbers of layers in dense blocks 1 to 4.
BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
GROWTH = 32  # channels that a layer adds
# Blocks with a pooling after their transition. The pooling after block 3 is left out: so all layers
# of a pretrained network are used, and the last map, the richest, is at stride 16.
POOLED = (1, 2)


class DenseNet(nn.Module):
    """A DenseNet without the classifier. Input: RGB, normalised with ImageNet's values.

    Every pooling rounds up. In torchvision it rounds down; for multiples of 32 that is the same.

    Attributes:
        depth: a key of BLOCKS.
        width: factor on the stem's channels and on the growth rate (rounded to multiples of 8).
        frozen_stages: the first stages, 0 to 5, that do not learn. Stage 1 is the stem, stages 2
            to 5 are the dense blocks, each with the layers up to the next one.
        norm_momentum, norm_axis, dtype: see ConvBlock.
    """

    depth: int
    width: float = 1.0
    frozen_stages: int = 0
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the maps of dense block 2 (stride 8) and 4 (stride 16) of images [B, H, W, 3].

        A dense block ends in convolutions without BatchNorm or ReLU, so both maps are taken after
        the BatchNorm and ReLU that follow. That of block 2 still has all its channels, which the
        transition halves.
        """
        options = shared_fields(self)
        stem = ConvBlock(scaled_channels(64, self.width), 7, 2, name="stem", **options)
        x = max_pool_3x3(stem(images, train=train and self.frozen_stages < 1), stride=2)
        x = jax.lax.stop_gradient(x) if self.frozen_stages >= 1 else x
        growth = scaled_channels(GROWTH, self.width)
        for block, layers in enumerate(BLOCKS[self.depth], 1):
            frozen = block < self.frozen_stages
            learns = train and not frozen
            for number in range(1, layers + 1):
                name = f"denseblock{block}_layer{number}"
                x = DenseLayer(growth, name=name, **options)(x, train=learns)
            if block < len(BLOCKS[self.depth]):
                transition = NormReluConv(x.shape[-1] // 2, 1, name=f"transition{block}", **options)
                y, x = transition(x, train=learns)
            else:
                y = x = nn.relu(batch_norm(self, train=learns, name="norm5")(x))
            y, x = jax.lax.stop_gradient((y, x)) if frozen else (y, x)
            x = avg_pool_2x2(x) if block in POOLED else x
            if block == 2:
                shallow = y
        return shallow, x

    def frozen_modules(self) -> tuple[str, ...]:
        """Returns the names of the submodules that do not learn."""
        names = ["stem"] if self.frozen_stages else []
        for block, layers in enumerate(BLOCKS[self.depth][: max(0, self.frozen_stages - 1)], 1):
            names += [f"denseblock{block}_layer{number}" for number in range(1, layers + 1)]
            names.append(f"transition{block}" if block < len(BLOCKS[self.depth]) else "norm5")
        return tuple(names)


class DenseLayer(nn.Module):
    """Appends `growth` channels to its input by a 1x1 and a 3x3 convolution."""

    growth: int
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        options = shared_fields(self)
        _, y = NormReluConv(4 * self.growth, 1, name="conv1", **options)(x, train=train)
        _, y = NormReluConv(self.growth, 3, name="conv2", **options)(y, train=train)
        return jnp.concatenate([x, y], axis=-1)


class NormReluConv(nn.Module):
    """BatchNorm, ReLU and a convolution without bias, in this order; keeps the size.

    Attributes:
        features, kernel_size, norm_momentum, norm_axis, dtype: see ConvBlock.
    """

    features: int
    kernel_size: int
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the input and the output of the convolution."""
        x = nn.relu(batch_norm(self, train=train, name="norm")(x))
        conv = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            padding=self.kernel_size // 2,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )
        return x, conv(x)
