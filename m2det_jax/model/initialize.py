"""Initial values of the parameters. Numpy draws them: every device and jax version agrees."""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from m2det_jax.model.heads import is_class_output

HEADS = ("box_head", "class_head")
HEAD_STD = 0.01
PRIOR = 0.01


@functools.cache
def variable_shapes(model: nn.Module, image_size: tuple[int, int]) -> dict:
    """Returns {"params", "batch_stats"} of jax.ShapeDtypeStruct, without computing anything.

    Tracing a deep model takes a second, so the result is cached: do not change it.
    """

    def initialize() -> Any:
        # The key does not matter: only shapes are traced, and no value is drawn.
        return model.init(jax.random.key(0), jnp.zeros((1, *image_size, 3)), train=False)

    return {"batch_stats": {}} | dict(jax.eval_shape(initialize))


def init_variables(
    model: nn.Module, image_size: tuple[int, int], seed: int, *, prior: float | None = PRIOR
) -> dict:
    """Returns the model's initial variables by the rules of `fill_variables`.

    Args:
        model: M2Det or a backbone, called as model(images, train=...).
        image_size: (height, width); the result does not depend on it.
        seed: non-negative integer.
        prior: see `fill_variables`.

    Returns:
        {"params", "batch_stats"}, nested dicts of float32 numpy arrays.
    """
    return fill_variables(variable_shapes(model, image_size), seed, prior=prior)


def fill_variables(shapes: dict, seed: int, *, prior: float | None = PRIOR) -> dict:
    """Returns numpy arrays for the shapes of a module's variables.

    Kernels are normal with variance 2 / fan-in (He); those of the heads have a standard deviation
    of 0.01. Biases are 0, except those of the class outputs: they give every class of every anchor
    the probability `prior` at the start (focal loss, arXiv 1708.02002, section 3.3). BatchNorm
    starts as the identity. Each tensor has its own generator, whose key is the seed and the path of
    the tensor, so that a tensor does not depend on which other tensors exist.

    Args:
        shapes: {"params", "batch_stats"}, nested dicts with a `shape` at each leaf.
        seed: non-negative integer.
        prior: 0..1, for a sigmoid on the class logits. None, for a softmax: these biases are 0.

    Returns:
        `shapes` with float32 arrays in place of its leaves.
    """
    flat = flatten_dict(shapes)
    filled = {
        path: _initial_value(path[1:], leaf.shape, seed, prior) for path, leaf in flat.items()
    }
    return {collection: {} for collection in shapes} | unflatten_dict(filled)


def _initial_value(
    path: tuple[str, ...], shape: tuple[int, ...], seed: int, prior: float | None
) -> np.ndarray:
    name = path[-1]
    if name == "kernel":
        generator = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
        std = HEAD_STD if path[0] in HEADS else math.sqrt(2 / math.prod(shape[:-1]))
        return generator.standard_normal(shape, np.float32) * np.float32(std)
    if name == "bias" and is_class_output(path) and prior is not None:
        return np.full(shape, -math.log((1 - prior) / prior), np.float32)
    return FILL[name](shape, np.float32)


FILL: dict[str, Callable] = {"bias": np.zeros, "mean": np.zeros, "scale": np.ones, "var": np.ones}
