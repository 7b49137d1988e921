"""Folding of BatchNorm into convolutions, for programs that only detect.

With running averages BatchNorm is y = x * factor + shift in each channel. Behind a convolution the
factor goes into its kernel and the shift becomes its bias. Elsewhere (the layers of a DenseNet,
the largest map before the heads) the multiplication and the sum stay.
"""

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

# Here "norm", where there is one, directly follows "conv", whose output nothing else reads.
_CONV_AND_NORM = (ConvBlock, Conv6)


def apply_folded(model: M2Det, variables: Mapping[str, Any], images: jax.Array) -> Any:
    """Returns what model.apply(variables, images, train=False) does, but for rounding.

    Args:
        model: one with remat=False.
        variables: params and batch_stats, numpy arrays. They become constants of the program, and
            what is folded is computed while the program is traced.
        images: normalised floats [B, H, W, 3].
    """
    with nn.intercept_methods(_fold):
        return model.apply(variables, images, train=False)


def _fold(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if isinstance(module, BatchNorm):
        if isinstance(module.parent, _CONV_AND_NORM):
            return args[0]
        factor, shift = _affine(module.variables, module.epsilon)
        return (args[0] * factor + shift).astype(module.dtype)
    if isinstance(module, nn.Conv | DepthwiseConv) and isinstance(module.parent, _CONV_AND_NORM):
        around = module.parent.variables
        if "norm" in around["params"]:
            norm = {collection: around[collection]["norm"] for collection in around}
            factor, shift = _affine(norm, NORM_EPSILON)
            kernel = np.asarray(module.variables["params"]["kernel"], np.float64) * factor
            alone = module.clone(parent=None, name=None)
            folded = {"params": {"kernel": kernel.astype(np.float32)}}
            return alone.apply(folded, *args, **kwargs) + shift.astype(module.dtype)
    return call(*args, **kwargs)


def _affine(norm: Mapping[str, Any], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns factor and shift, float32 [1, 1, 1, C], of the variables of a BatchNorm."""
    params, averages = (
        {name: np.asarray(leaf, np.float64) for name, leaf in norm[collection].items()}
        for collection in ("params", "batch_stats")
    )
    factor = params["scale"] / np.sqrt(averages["var"] + epsilon)
    shift = params["bias"] - averages["mean"] * factor
    return (
        factor.astype(np.float32).reshape(1, 1, 1, -1),
        shift.astype(np.float32).reshape(1, 1, 1, -1),
    )
