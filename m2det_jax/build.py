"""Builder of what a config describes: detector, anchors, and plain values for the rooms below.

Below this module nothing sees a config. Every key is named where its value goes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from m2det_jax import ops
from m2det_jax.config import Config
from m2det_jax.data import AugmentSettings, ResizeSettings
from m2det_jax.detector.detector import Detector, Suppression
from m2det_jax.detector.objective import StepSettings
from m2det_jax.detector.views import Views
from m2det_jax.errors import InputError
from m2det_jax.model import M2Det, feature_map_sizes
from m2det_jax.run import memory
from m2det_jax.weights.preprocessing import Preprocessing
from m2det_jax.weights.pretrained import BackboneSettings


def anchors_per_cell(config: Config) -> int:
    """Returns how many anchors config.anchors gives each cell of each map."""
    ratios = len(config.anchors.aspect_ratios)
    if config.anchors.kind == "retinanet":
        return (1 + 2 * ratios) * len(config.anchors.octave_scales)
    return 2 + 2 * ratios


def anchor_sizes(config: Config) -> tuple[float, ...]:
    """Returns the sizes of the anchors in pixels: those of the config, or the default ones."""
    image_size, num_scales = config.data.image_size, config.model.num_scales
    if config.anchors.sizes:
        return config.anchors.sizes
    if config.anchors.kind == "retinanet":
        return ops.retinanet_sizes(image_size, num_scales)
    return ops.ssd_sizes(image_size, num_scales)


def make_anchors(config: Config, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the anchors of a config, float32 [A, 4] xyxy in pixels of the network input.

    One set serves training and detection alike. At another image_size (height, width) than that of
    the config the anchors are as large in pixels, on the maps of that size: an output of the
    network then means the same at every size. What config.anchors.clip cuts is cut to
    config.data.image_size, so that at a smaller size some are larger than the image.

    Raises:
        InputError: the input size does not carry that many scales, or sizes or steps do not fit
            them.
    """
    nominal_size = config.data.image_size
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


def _nominal_anchors(config: Config, maps: tuple[tuple[int, int], ...]) -> np.ndarray:
    image_size, c = config.data.image_size, config.anchors
    if c.kind == "retinanet":
        inverses = [1 / ratio for ratio in reversed(c.aspect_ratios)]
        return ops.retinanet_anchors(
            maps,
            image_size,
            sizes=anchor_sizes(config),
            ratios=(*inverses, 1.0, *c.aspect_ratios),
            octave_scales=c.octave_scales,
        )
    return ops.ssd_anchors(
        maps,
        image_size,
        sizes=anchor_sizes(config),
        aspect_ratios=c.aspect_ratios,
        steps=c.steps or None,
        clip=c.clip,
    )


def _feature_maps(config: Config, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    num_scales = config.model.num_scales
    try:
        return feature_map_sizes(image_size, num_scales)
    except ValueError as error:
        raise InputError(f"config.model.num_scales={num_scales}: {error}") from None


def build_detector(config: Config, class_names: tuple[str, ...]) -> Detector:
    """Builds the detector that a config describes.

    Raises:
        InputError: the input size does not carry that many scales, or the anchors do not fit them.
    """
    background = config.loss.kind == "softmax"
    return Detector(
        model=_make_model(config, len(class_names) + background),
        anchors=make_anchors(config),
        class_names=tuple(class_names),
        resize=ResizeSettings(config.data.image_size, config.data.resize, fill_colour(config)),
        mean=config.data.mean,
        std=config.data.std,
        channel_order=config.data.channel_order,
        variances=config.anchors.variances,
        background=background,
        suppression=make_suppression(config),
    )


def _make_model(config: Config, num_class_outputs: int) -> M2Det:
    return M2Det(
        num_class_outputs=num_class_outputs,
        anchors_per_cell=anchors_per_cell(config),
        backbone=config.model.backbone,
        backbone_width=config.model.backbone_width,
        backbone_norm=config.model.backbone_norm,
        backbone_official_stride=config.model.backbone_official_stride,
        frozen_stages=config.model.frozen_stages,
        num_levels=config.model.num_levels,
        num_scales=config.model.num_scales,
        shallow_channels=config.model.shallow_channels,
        deep_channels=config.model.deep_channels,
        reduced_channels=config.model.reduced_channels,
        tum_width=config.model.tum_width,
        tum_out=config.model.tum_out,
        sfam=config.model.sfam,
        sfam_shared=config.model.sfam_shared,
        share_base_reduction=config.model.share_base_reduction,
        largest_scale_norm=config.model.largest_scale_norm,
        upsample=config.model.upsample,
        head=config.model.head,
        norm_momentum=config.model.norm_momentum,
        remat=config.model.remat,
        dtype=jnp.dtype(config.model.dtype),
    )


def make_suppression(config: Config) -> Suppression:
    """Returns the plain values of config.eval that choose among the boxes of an image."""
    return Suppression(
        nms=config.eval.nms,
        score_threshold=config.eval.score_threshold,
        iou_threshold=config.eval.iou_threshold,
        pre_nms_top_k=config.eval.pre_nms_top_k,
        soft_iou_threshold=config.eval.soft_iou_threshold,
        soft_sigma=config.eval.soft_sigma,
        soft_score_floor=config.eval.soft_score_floor,
        soft_candidates=config.eval.soft_candidates,
        max_per_class=config.eval.max_per_class,
        max_detections=config.eval.max_detections,
        class_agnostic=config.eval.class_agnostic,
    )


def make_views(config: Config) -> Views | None:
    """Returns the views of config.eval; None where they are the plain one that training uses."""
    own = config.data.image_size
    sides = [(s, s) if isinstance(s, int) else s for s in config.eval.test_sizes]
    sizes = tuple(dict.fromkeys(sides)) or (own,)
    if sizes == (own,) and not config.eval.test_flip:
        return None
    return Views(sizes, config.eval.test_flip)


def step_settings(config: Config) -> StepSettings:
    """Returns the plain values of a config that shape matching and losses."""
    return StepSettings(
        positive_threshold=config.anchors.positive_threshold,
        negative_threshold=config.anchors.negative_threshold,
        loss_kind=config.loss.kind,
        focal_alpha=config.loss.focal_alpha_per_class or config.loss.focal_alpha,
        focal_gamma=config.loss.focal_gamma,
        negative_ratio=config.loss.negative_ratio,
        smooth_l1_beta=config.loss.smooth_l1_beta,
        box_weight=config.loss.box_weight,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.accumulation,
        skip_nonfinite=config.on_nonfinite == "skip",
        norm_warmup=config.optimizer.norm_warmup,
    )


def backbone_settings(config: Config) -> BackboneSettings:
    """Returns the plain values of a config that pretrained weights of a backbone must fit."""
    preprocessing = Preprocessing(
        mean=config.data.mean, std=config.data.std, channel_order=config.data.channel_order
    )
    return BackboneSettings(
        weights=config.model.backbone_weights,
        backbone=config.model.backbone,
        width=config.model.backbone_width,
        norm=config.model.backbone_norm,
        preprocessing=preprocessing,
    )


def memory_settings(config: Config) -> memory.MemorySettings:
    """Returns the plain values of a config that decide how much memory a step takes."""
    return memory.MemorySettings(
        image_size=config.data.image_size,
        batch_size=config.batch_size,
        accumulation=config.accumulation,
        remat=config.model.remat,
        dtype=config.model.dtype,
        sharding=config.sharding,
        num_devices=jax.device_count(),
    )


def fill_colour(config: Config) -> tuple[int, int, int]:
    """Returns what the network input shows where there is no image: the mean, RGB."""
    red, green, blue = config.data.mean
    return round(red), round(green), round(blue)


def augment_settings(config: Config) -> AugmentSettings:
    """Returns the plain values of config.augment and of the resize that follows.

    Raises:
        InputError: a value or the order of the steps is impossible; names the key.
    """
    try:
        return AugmentSettings(
            image_size=config.data.image_size,
            mode=config.data.resize,
            fill=fill_colour(config),
            enabled=config.augment.enabled,
            pipeline=config.augment.pipeline,
            flip_probability=config.augment.flip_probability,
            expand_probability=config.augment.expand_probability,
            expand_max=config.augment.expand_max,
            crop_probability=config.augment.crop_probability,
            crop_min_scale=config.augment.crop_min_scale,
            photometric_probability=config.augment.photometric_probability,
            brightness=config.augment.brightness,
            contrast=config.augment.contrast,
            saturation=config.augment.saturation,
            hue=config.augment.hue,
            affine_probability=config.augment.affine_probability,
            affine_rotation=config.augment.affine_rotation,
            affine_shear=config.augment.affine_shear,
            affine_scale=config.augment.affine_scale,
            affine_translation=config.augment.affine_translation,
            jitter_probability=config.augment.jitter_probability,
            jitter_scale=config.augment.jitter_scale,
            mosaic_probability=config.augment.mosaic_probability,
            mosaic_scale=config.augment.mosaic_scale,
            mosaic_joint=config.augment.mosaic_joint,
            mixup_probability=config.augment.mixup_probability,
            mixup_min_share=config.augment.mixup_min_share,
            paste_probability=config.augment.paste_probability,
            paste_max=config.augment.paste_max,
            paste_scale=config.augment.paste_scale,
            paste_max_covered=config.augment.paste_max_covered,
            min_visible=config.augment.min_visible,
        )
    except ValueError as error:
        raise InputError(f"config.augment.{error}") from None


def train_sizes(config: Config) -> tuple[tuple[int, int], ...]:
    """Returns the (height, width) that training steps may have; one, or those of train_sizes."""
    return config.data.train_sizes or (config.data.image_size,)
