"""Folding of BatchNorm into convolutions, for programs that only detect.

With running averages BatchNorm is y = x * factor + shift in each channel. Behind a convolution the
factor goes into its kernel and the shift becomes its bias. Elsewhere (the layers of a DenseNet,
the largest map before the heads) the multiplication and the sum stay.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from m2det_jax.model.depthwise import DepthwiseConv
from m2det_jax.model.layers import NORM_EPSILON, ConvBlock
from m2det_jax.model.m2det import M2Det
from m2det_jax.model.mobilenet import Conv6
from m2det_jax.model.norm import BatchNorm


def apply_folded(
    model: M2Det, variables: Mapping[str, Any], images: jax.Array, *, grouped: bool = False
) -> Any:
    """Returns what model.apply(variables, images, train=False) does, but for rounding.

    Args:
        model: one with remat=False.
        variables: params and batch_stats, numpy arrays. They become constants of the program, and
            what is folded is computed while the program is traced.
        images: normalised floats [B, H, W, 3].
        grouped: write depthwise convolutions as grouped ones on a CPU too, for other runtimes.
    """
    with nn.intercept_methods(functools.partial(_fold, grouped)):
        return model.apply(variables, images, train=False)


def _fold(
    grouped: bool,
    call: Callable,
    args: tuple,
    kwargs: dict,
    context: nn.module.InterceptorContext,
) -> Any:
    module = context.module
    if isinstance(module, BatchNorm):
        factor, shift = _affine(module.variables, module.epsilon)
        scaled = args[0] * factor.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)
        return scaled.astype(module.dtype)
    if isinstance(module, Conv6):
        return _conv6(module, args[0], grouped)
    if isinstance(module, ConvBlock) and module.norm:
        plain = module.clone(parent=None, name=None, norm=False)
        return plain.apply({"params": {"conv": _folded(module)}}, *args, **kwargs)
    return call(*args, **kwargs)


def _conv6(module: Conv6, x: jax.Array, grouped: bool) -> jax.Array:
    """Returns what the block gives for x, its BatchNorm folded."""
    conv = _folded(module)
    y: Any
    if module.features is None and not grouped:
        depthwise = DepthwiseConv(module.strides, module.dtype)
        y = depthwise.apply({"params": {"kernel": conv["kernel"]}}, x)
        y = y + conv["bias"].astype(module.dtype).reshape(1, 1, 1, -1)
    else:
        size = 3 if module.features is None else module.kernel_size
        plain = nn.Conv(
            x.shape[-1] if module.features is None else module.features,
            (size, size),
            module.strides,
            padding=size // 2,
            feature_group_count=x.shape[-1] if module.features is None else 1,
            dtype=module.dtype,
        )
        y = plain.apply({"params": conv}, x)
    return nn.relu6(y) if module.relu6 else y


def _folded(module: ConvBlock | Conv6) -> dict[str, np.ndarray]:
    """Returns kernel and bias of a block's convolution with the BatchNorm behind it."""
    of = module.variables
    norm = {"params": of["params"]["norm"], "batch_stats": of["batch_stats"]["norm"]}
    factor, shift = _affine(norm, NORM_EPSILON)
    kernel = np.asarray(of["params"]["conv"]["kernel"], np.float64) * factor
    return {"kernel": kernel.astype(np.float32), "bias": shift}


def _affine(norm: Mapping[str, Any], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns factor and shift, float32 [C], of the variables of a BatchNorm."""
    params, averages = (
        {name: np.asarray(leaf, np.float64) for name, leaf in norm[collection].items()}
        for collection in ("params", "batch_stats")
    )
    factor = params["scale"] / np.sqrt(averages["var"] + epsilon)
    shift = params["bias"] - averages["mean"] * factor
    return factor.astype(np.float32), shift.astype(np.float32)
