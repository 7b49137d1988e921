"""The anchors that a config describes."""

import numpy as np
from ml_collections import ConfigDict

from m2det_jax import ops
from m2det_jax.errors import InputError
from m2det_jax.model import feature_map_sizes


def anchors_per_cell(config: ConfigDict) -> int:
    """Returns how many anchors config.anchors gives each cell of each map."""
    ratios = len(config.anchors.aspect_ratios)
    if config.anchors.kind == "retinanet":
        return (1 + 2 * ratios) * len(config.anchors.octave_scales)
    return 2 + 2 * ratios


def anchor_sizes(config: ConfigDict) -> tuple[float, ...]:
    """Returns the sizes of the anchors in pixels: those of the config, or the default ones."""
    image_size, num_scales = tuple(config.data.image_size), config.model.num_scales
    if config.anchors.sizes:
        return tuple(config.anchors.sizes)
    if config.anchors.kind == "retinanet":
        return ops.retinanet_sizes(image_size, num_scales)
    return ops.ssd_sizes(image_size, num_scales)


def make_anchors(config: ConfigDict, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the anchors of a config, float32 [A, 4] xyxy in pixels of the network input.

    One set serves training and detection alike. At another image_size (height, width) than that of
    the config the anchors are as large in pixels, on the maps of that size: an output of the
    network then means the same at every size. What config.anchors.clip cuts is cut to
    config.data.image_size, so that at a smaller size some are larger than the image.

    Raises:
      ValueError: the input size does not carry that many scales, or sizes or steps do not fit them.
    """
    nominal_size = tuple(config.data.image_size)
    image_size = image_size or nominal_size
    if config.anchors.steps and image_size != nominal_size:
        raise InputError(
            f"config.anchors.steps are those of config.data.image_size={nominal_size}; leave them "
            f"() to train at {image_size}"
        )
    maps = _feature_maps(config, nominal_size)
    anchors = _nominal_anchors(config, maps)
    if image_size == nominal_size:
        return anchors
    return ops.spread_anchors(
        anchors,
        maps,
        new_feature_maps=_feature_maps(config, image_size),
        new_image_size=image_size,
    )


def _nominal_anchors(config: ConfigDict, maps: list[tuple[int, int]]) -> np.ndarray:
    image_size, c = tuple(config.data.image_size), config.anchors
    if c.kind == "retinanet":
        inverses = [1 / ratio for ratio in reversed(c.aspect_ratios)]
        return ops.retinanet_anchors(
            maps,
            image_size,
            sizes=anchor_sizes(config),
            ratios=(*inverses, 1.0, *c.aspect_ratios),
            octave_scales=tuple(c.octave_scales),
        )
    return ops.ssd_anchors(
        maps,
        image_size,
        sizes=anchor_sizes(config),
        aspect_ratios=tuple(c.aspect_ratios),
        steps=tuple(c.steps) or None,
        clip=c.clip,
    )


def _feature_maps(config: ConfigDict, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    num_scales = config.model.num_scales
    try:
        return feature_map_sizes(image_size, num_scales)
    except ValueError as error:
        raise InputError(f"config.model.num_scales={num_scales}: {error}") from None
