"""What a config describes: anchors, detector, and the plain values of steps, views and pictures.

Below this module and its like nothing sees a config.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from m2det_jax import ops
from m2det_jax.data import AugmentSettings, ResizeSettings
from m2det_jax.detector.detector import Detector, Suppression
from m2det_jax.detector.objective import StepSettings
from m2det_jax.detector.views import Views
from m2det_jax.errors import InputError
from m2det_jax.model import M2Det, feature_map_sizes
from m2det_jax.run import memory


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


def build_detector(config: ConfigDict, class_names: tuple[str, ...]) -> Detector:
    """Builds the detector that a config describes.

    Raises:
      ValueError: the input size does not carry that many scales, or the anchors do not fit them.
    """
    image_size = tuple(config.data.image_size)
    model_config = config.model.to_dict()
    del model_config["backbone_weights"]
    background = config.loss.kind == "softmax"
    model = M2Det(
        **model_config | {"dtype": jnp.dtype(config.model.dtype)},
        num_class_outputs=len(class_names) + background,
        anchors_per_cell=anchors_per_cell(config),
    )
    return Detector(
        model=model,
        anchors=make_anchors(config),
        class_names=tuple(class_names),
        resize=ResizeSettings(image_size, config.data.resize, fill_colour(config)),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        channel_order=config.data.channel_order,
        variances=tuple(config.anchors.variances),
        background=background,
        suppression=make_suppression(config),
    )


def make_suppression(config: ConfigDict) -> Suppression:
    """Returns the plain values of config.eval that choose among the boxes of an image."""
    names = [field.name for field in dataclasses.fields(Suppression)]
    return Suppression(**{name: config.eval[name] for name in names})


def make_views(config: ConfigDict) -> Views | None:
    """Returns the views of config.eval; None where they are the plain one that training uses."""
    own = tuple(config.data.image_size)
    sizes = [(s, s) if isinstance(s, int) else tuple(s) for s in config.eval.test_sizes]
    sizes = tuple(dict.fromkeys(sizes)) or (own,)
    if sizes == (own,) and not config.eval.test_flip:
        return None
    return Views(sizes, config.eval.test_flip)


def step_settings(config) -> StepSettings:
    """Returns the plain values of a config that shape matching and losses."""
    return StepSettings(
        positive_threshold=config.anchors.positive_threshold,
        negative_threshold=config.anchors.negative_threshold,
        loss_kind=config.loss.kind,
        focal_alpha=tuple(config.loss.focal_alpha_per_class) or config.loss.focal_alpha,
        focal_gamma=config.loss.focal_gamma,
        negative_ratio=config.loss.negative_ratio,
        smooth_l1_beta=config.loss.smooth_l1_beta,
        box_weight=config.loss.box_weight,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.accumulation,
        skip_nonfinite=config.on_nonfinite == "skip",
        norm_warmup=config.optimizer.norm_warmup,
    )


def memory_settings(config: ConfigDict) -> memory.MemorySettings:
    """Returns the plain values of a config that decide how much memory a step takes."""
    return memory.MemorySettings(
        image_size=tuple(config.data.image_size),
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        remat=config.model.remat,
        dtype=config.model.dtype,
        sharding=config.sharding,
        num_devices=jax.device_count(),
    )


def fill_colour(config: ConfigDict) -> tuple[int, int, int]:
    """Returns what the network input shows where there is no image: the mean, RGB."""
    return tuple(round(value) for value in config.data.mean)


def augment_settings(config: ConfigDict) -> AugmentSettings:
    """Returns the plain values of config.augment and of the resize that follows.

    Raises:
      ValueError: a value or the order of the steps is impossible; names the key.
    """
    try:
        return AugmentSettings(
            image_size=tuple(config.data.image_size),
            mode=config.data.resize,
            fill=fill_colour(config),
            **config.augment.to_dict(),
        )
    except ValueError as error:
        raise InputError(f"config.augment.{error}") from None


def train_sizes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """Returns the (height, width) that training steps may have; one, or those of train_sizes."""
    sizes = config.data.train_sizes or (config.data.image_size,)
    return tuple((int(height), int(width)) for height, width in sizes)
