"""Building blocks of every part of the network.

Feature maps are [B, H, W, C] throughout (B batch, H rows, W columns, C channels).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

NORM_EPSILON = 1e-5
# The official code's 0.01 in PyTorch's sense; in Flax's it is the share of the old value kept.
NORM_MOMENTUM = 0.99


class ConvBlock(nn.Module):
    """A convolution, BatchNorm (or a bias where `norm` is False) and, unless told not to, ReLU.

    Attributes:
        features: number of output channels.
        kernel_size: side of the square kernel.
        strides: stride along both axes.
        dilation: distance between kernel taps, in pixels.
        padding: zeros added on each side. None keeps the size at stride 1 and gives ceil(size / 2)
            at stride 2, as PyTorch's `padding=kernel // 2` does (XLA's "SAME" pads even sizes on
            one side only).
        norm: BatchNorm without a convolution bias (True) or a bias without BatchNorm (False).
        relu: end with ReLU.
        norm_momentum: share of the old running average that one step keeps.
        norm_axis: see `batch_norm`.
        dtype: dtype of the computation. Parameters and running averages are float32.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    padding: int | None = None
    norm: bool = True
    relu: bool = True
    norm_momentum: float = NORM_MOMENTUM
    norm_axis: str | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        padding = self.dilation * (self.kernel_size // 2) if self.padding is None else self.padding
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.strides,
            padding=padding,
            kernel_dilation=self.dilation,
            use_bias=not self.norm,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm:
            x = batch_norm(self, train=train, name="norm")(x)
        return nn.relu(x) if self.relu else x


class HasNorm(Protocol):
    """A module with the fields that `batch_norm` reads."""

    norm_momentum: float
    norm_axis: str | None
    dtype: DTypeLike


def batch_norm(module: HasNorm, *, train: bool, name: str) -> nn.BatchNorm:
    """Returns the BatchNorm used everywhere; statistics are float32 whatever the dtype is.

    Args:
        module: in which it stands. Its fields are taken: `norm_momentum`, `dtype`, and `norm_axis`,
            the axis of jax.shard_map over whose devices the statistics are taken. None: those of
            the images that the program sees, which outside shard_map is the whole batch.
        train: use the statistics of the batch, and update the running averages.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=module.norm_momentum,
        epsilon=NORM_EPSILON,
        dtype=module.dtype,
        axis_name=module.norm_axis,
        # E[x^2] - E[x]^2 cancels: one device and eight would soon differ by it (a hundred times
        # more in the gradient's norm after three steps).
        use_fast_variance=False,
        name=name,
    )


def shared_fields(module: nn.Module) -> dict[str, Any]:
    """Returns the fields that a module of the network hands to all modules in it, by name."""
    return {name: getattr(module, name) for name in ("norm_momentum", "norm_axis", "dtype")}


def call_block(block: nn.Module, x: jax.Array, *, train: bool, remat: bool) -> Any:
    """Returns block(x, train=train); with `remat` the backward pass computes its inside again."""

    def call(block: nn.Module, x: jax.Array) -> Any:
        return block(x, train=train)

    return nn.remat(call)(block, x) if remat else call(block, x)


def scaled_channels(channels: int, width: float) -> int:
    """Returns `width` times a number of channels, as the nearest multiple of 8 and at least 8."""
    return max(8, 8 * round(channels * width / 8))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Returns the maxima of 2x2 cells at stride 2, [B, ceil(H / 2), ceil(W / 2), C].

    Written as maxima of strided slices: XLA's gradient of a windowed maximum (select-and-scatter)
    is an order of magnitude slower than theirs on CPU.
    """
    for axis in (1, 2):
        if x.shape[axis] % 2:
            x = _pad_with_lowest(x, axis, before=0, after=1)
        size = x.shape[axis]
        x = jnp.maximum(
            jax.lax.slice_in_dim(x, 0, size, 2, axis),
            jax.lax.slice_in_dim(x, 1, size, 2, axis),
        )
    return x


def max_pool_3x3(x: jax.Array, stride: int = 1) -> jax.Array:
    """Returns the maxima of 3x3 neighbourhoods, [B, ceil(H / stride), ceil(W / stride), C].

    Padding never wins.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padded = _pad_with_lowest(x, axis, before=1, after=1)
        left, middle, right = (
            jax.lax.slice_in_dim(padded, i, i + size, stride, axis) for i in range(3)
        )
        x = jnp.maximum(jnp.maximum(left, middle), right)
    return x


def avg_pool_2x2(x: jax.Array) -> jax.Array:
    """Returns the means of 2x2 cells at stride 2, [B, ceil(H / 2), ceil(W / 2), C].

    A last row or column without a partner counts twice, so that it gives the mean of what is there.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        first = jax.lax.slice_in_dim(x, 0, size, 2, axis)
        second = jax.lax.slice_in_dim(x, 1, size, 2, axis)
        if size % 2:
            last = jax.lax.slice_in_dim(x, size - 1, size, 1, axis)
            second = jnp.concatenate([second, last], axis)
        x = (first + second) * 0.5
    return x


def _pad_with_lowest(x: jax.Array, axis: int, *, before: int, after: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths, constant_values=-jnp.inf)


def upsample(x: jax.Array, size: Sequence[int], method: str) -> jax.Array:
    """Resizes [B, H, W, C] to [B, *size, C] by `method` "nearest" or "bilinear".

    "nearest" follows PyTorch: output row i reads input row floor(i * H / size[0]). "bilinear" has
    pixel centres at halves and repeats the border (PyTorch's align_corners=False).

    Raises:
        ValueError: if the method is another.
    """
    if method not in UPSAMPLING:
        raise ValueError(
            f"upsample: unknown method {method!r}; expected one of {sorted(UPSAMPLING)}"
        )
    for axis, out in ((1, size[0]), (2, size[1])):
        if x.shape[axis] != out:
            x = UPSAMPLING[method](x, axis, out)
    return x


def _nearest(x: jax.Array, axis: int, out: int) -> jax.Array:
    size = x.shape[axis]
    factor = -(-out // size)
    if out == factor * size or out == 2 * size - 1:
        # For out = 2 * size - 1 (a map halved by ceil) floor(i * size / out) is i // 2, so this is
        # the same rule; a repeat, unlike a gather, has a cheap gradient.
        return jax.lax.slice_in_dim(jnp.repeat(x, factor, axis=axis), 0, out, 1, axis)
    return jnp.take(x, np.arange(out) * size // out, axis=axis)


def _bilinear(x: jax.Array, axis: int, out: int) -> jax.Array:
    size = x.shape[axis]
    position = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    distance = np.abs(position[:, None] - np.arange(size)[None, :])
    weights = np.maximum(0, 1 - distance)  # [out, size]: rows sum to 1
    equation = "oh,bhwc->bowc" if axis == 1 else "ow,bhwc->bhoc"
    return jnp.einsum(equation, jnp.asarray(weights, x.dtype), x)


UPSAMPLING = {"nearest": _nearest, "bilinear": _bilinear}
