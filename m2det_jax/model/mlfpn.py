"""The multi-level feature pyramid network of M2Det (arXiv 1811.04533, section 3.1).

Scales are numbered from 1, the largest map, to S; levels from 1, the first TUM, to L.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from m2det_jax.model.layers import (
    NORM_MOMENTUM,
    ConvBlock,
    batch_norm,
    call_block,
    shared_fields,
    upsample,
)


class FFMv1(nn.Module):
    """Fuses the backbone's two maps into the base feature.

    A 3x3 convolution on the shallow map, a 1x1 convolution and nearest upsampling on the deep map,
    and concatenation: [B, ceil(H / 8), ceil(W / 8), shallow_channels + deep_channels].
    """

    shallow_channels: int = 256
    deep_channels: int = 512
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, shallow: jax.Array, deep: jax.Array, *, train: bool) -> jax.Array:
        options = shared_fields(self)
        conv_shallow = ConvBlock(self.shallow_channels, 3, name="shallow", **options)
        conv_deep = ConvBlock(self.deep_channels, 1, name="deep", **options)
        deep = upsample(conv_deep(deep, train=train), shallow.shape[1:3], "nearest")
        return jnp.concatenate([conv_shallow(shallow, train=train), deep], axis=-1)


class FFMv2(nn.Module):
    """Reduces the base feature and appends the largest map of the previous TUM.

    No TUM comes before the first one, which gets the reduced base feature alone, as in the
    official code.
    """

    reduced_channels: int = 128
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, base: jax.Array, previous: jax.Array | None, *, train: bool) -> jax.Array:
        options = shared_fields(self)
        reduce = ConvBlock(self.reduced_channels, 1, name="reduce", **options)
        return append_previous(reduce(base, train=train), previous)


def append_previous(reduced: jax.Array, previous: jax.Array | None) -> jax.Array:
    """Returns the reduced base feature with the previous TUM's largest map behind its channels."""
    return reduced if previous is None else jnp.concatenate([reduced, previous], axis=-1)


class TUM(nn.Module):
    """Thinned U-shape module: one feature pyramid, encoder then decoder.

    The encoder halves the map by 3x3 convolutions (sizes: `feature_map_sizes`). The decoder starts
    at the smallest scale. At each larger scale it upsamples the sum so far and adds a 3x3 lateral
    convolution of the encoder's map. A 1x1 convolution smooths the output of each scale. The
    smallest scale is not a sum: it is smoothed only where `out` differs from `width`. (In the
    official code the two are equal, and the smallest scale is not smoothed.)

    Attributes:
        num_scales: number of scales, S.
        width: channels inside the module.
        out: channels of each output map.
        upsample: "nearest" or "bilinear".
        norm_momentum, norm_axis, dtype: see ConvBlock.
    """

    num_scales: int = 6
    width: int = 256
    out: int = 128
    upsample: str = "nearest"
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Returns the S maps, the largest first."""
        last = self.num_scales
        encoded = {1: x}
        for scale in range(2, last + 1):
            unpadded = scale == last and last > 2
            options = dict(padding=0) if unpadded else dict(strides=2)
            block = self._block(self.width, 3, f"encoder_{scale}", **options)
            encoded[scale] = block(encoded[scale - 1], train=train)
        decoded = {last: self._block(self.width, 1, "top")(encoded[last], train=train)}
        for scale in range(last - 1, 0, -1):
            lateral = self._block(self.width, 3, f"lateral_{scale}")(encoded[scale], train=train)
            decoded[scale] = lateral + upsample(
                decoded[scale + 1], lateral.shape[1:3], self.upsample
            )
        num_smoothed = last - 1 if self.out == self.width else last
        for scale in range(1, num_smoothed + 1):
            smooth = self._block(self.out, 1, f"smooth_{scale}")
            decoded[scale] = smooth(decoded[scale], train=train)
        return [decoded[scale] for scale in range(1, last + 1)]

    def _block(self, features: int, kernel_size: int, name: str, **options: Any) -> ConvBlock:
        return ConvBlock(
            features,
            kernel_size,
            **shared_fields(self),
            name=name,
            **options,
        )


class SFAM(nn.Module):
    """Re-weights the channels of each scale by squeeze and excitation (paper, section 3.1).

    Attributes:
        shared: one pair of layers for all scales (official code) instead of one pair for each.
        ratio: number of channels over number of hidden units.
        dtype: dtype of the computation.
    """

    shared: bool = False
    ratio: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        channels = maps[0].shape[-1]
        names = ["scales"] if self.shared else [f"scale_{i}" for i in range(1, len(maps) + 1)]
        squeezes = [self._dense(max(1, channels // self.ratio), f"squeeze_{n}") for n in names]
        excites = [self._dense(channels, f"excite_{n}") for n in names]
        weighted = []
        for index, features in enumerate(maps):
            layer = 0 if self.shared else index
            pooled = features.mean(axis=(1, 2), keepdims=True)  # [B, 1, 1, C]
            weights = nn.sigmoid(excites[layer](nn.relu(squeezes[layer](pooled))))
            weighted.append(features * weights)
        return weighted

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, name=name)


class PyramidFields(nn.Module):
    """The fields of MLFPN. M2Det has them too and hands them on.

    Attributes:
        num_levels: number of TUMs, L.
        num_scales: number of maps of each TUM, S.
        shallow_channels, deep_channels: channels that FFMv1 makes of the backbone's two maps.
        reduced_channels: channels that FFMv2 reduces the base feature to.
        tum_width, tum_out: channels inside a TUM, and of each of its output maps.
        sfam: re-weight channels before the heads.
        sfam_shared: one pair of SFAM layers for all scales.
        share_base_reduction: one reduction of the base feature for all levels.
        largest_scale_norm: BatchNorm on the largest map before the heads.
        upsample: "nearest" or "bilinear", in the TUMs.
        norm_momentum: share of a running average that one training step keeps.
        norm_axis: the axis over which BatchNorm takes its statistics. It is for jax.shard_map,
            where a program sees the images of one device; see `layers.batch_norm`.
        remat: compute activations again in the backward pass instead of keeping them.
        dtype: dtype of the computation; parameters and running averages are float32.
    """

    num_levels: int = 8
    num_scales: int = 6
    shallow_channels: int = 256
    deep_channels: int = 512
    reduced_channels: int = 128
    tum_width: int = 256
    tum_out: int = 128
    sfam: bool = True
    sfam_shared: bool = False
    share_base_reduction: bool = False
    largest_scale_norm: bool = False
    upsample: str = "nearest"
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def pyramid_fields(self) -> dict[str, Any]:
        """Returns the values of these fields by name."""
        fields = dataclasses.fields(PyramidFields)
        return {f.name: getattr(self, f.name) for f in fields if f.name not in ("parent", "name")}


class MLFPN(PyramidFields):
    """Base feature, L levels of FFMv2 and TUM, and their aggregation."""

    @nn.compact
    def __call__(self, shallow: jax.Array, deep: jax.Array, *, train: bool) -> list[jax.Array]:
        """Returns one map for each scale, the largest first, of num_levels * tum_out channels."""
        options = shared_fields(self)
        ffm1 = FFMv1(self.shallow_channels, self.deep_channels, name="ffm1", **options)
        base = ffm1(shallow, deep, train=train)
        pyramids = self._levels(base, train, options)
        maps = [jnp.concatenate(scale, axis=-1) for scale in zip(*pyramids, strict=True)]
        if self.sfam:
            maps = SFAM(self.sfam_shared, dtype=self.dtype, name="sfam")(maps)
        if self.largest_scale_norm:
            norm = batch_norm(self, train=train, name="largest_scale_norm")
            maps[0] = norm(maps[0])
        return maps

    def _levels(
        self, base: jax.Array, train: bool, options: dict[str, Any]
    ) -> list[list[jax.Array]]:
        """Returns the pyramids [level][scale] of all TUMs."""
        if self.share_base_reduction:
            # All levels share it: computed once, and its running averages change once a step.
            reduce = ConvBlock(self.reduced_channels, 1, name="base_reduction", **options)
            base = reduce(base, train=train)
        pyramids: list[list[jax.Array]] = []
        previous = None
        for level in range(1, self.num_levels + 1):
            if self.share_base_reduction:
                fused = append_previous(base, previous)
            else:
                ffm2 = FFMv2(self.reduced_channels, name=f"ffm2_{level}", **options)
                fused = ffm2(base, previous, train=train)
            tum = TUM(
                self.num_scales,
                self.tum_width,
                self.tum_out,
                self.upsample,
                name=f"tum_{level}",
                **options,
            )
            pyramids.append(call_block(tum, fused, train=train, remat=self.remat))
            previous = pyramids[-1][0]
        return pyramids
