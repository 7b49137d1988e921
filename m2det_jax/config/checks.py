"""Checks on the values of a config that types cannot make."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from m2det_jax.config.experiments import flatten, get
from m2det_jax.errors import InputError

# The keys of model.backbones.BACKBONES, not imported: configs are checked before jax is loaded.
BACKBONES = (
    "densenet121", "densenet169", "densenet201", "mobilenet_v1", "mobilenet_v2", "resnet101",
    "resnet152", "resnet18", "resnet34", "resnet50", "vgg16", "vgg19",
)  # fmt: skip
# The keys of data.formats.sources.READERS, not imported either.
FORMATS = ("csv", "coco", "voc", "kitti", "openimages", "yolo")
_CHOICES = {
    "sharding": ("replicated", "fsdp"),
    "anchors.kind": ("ssd", "retinanet"),
    "model.backbone": BACKBONES,
    "data.on_bad_box": ("error", "clip", "drop"),
    "data.resize": ("stretch", "letterbox"),
    "data.channel_order": ("rgb", "bgr"),
    "model.upsample": ("nearest", "bilinear"),
    "model.head": ("conv", "retinanet"),
    "model.dtype": ("float32", "bfloat16"),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("step", "cosine", "constant"),
    "loss.kind": ("focal", "softmax"),
    "eval.nms": ("hard", "soft_linear", "soft_gaussian"),
    "platform": ("", "cpu", "gpu", "tpu"),
    "on_nonfinite": ("stop", "skip"),
    "data.on_bad_image": ("error", "skip"),
}
_POSITIVE = (
    "epochs batch_size accumulation model.num_levels model.backbone_width "
    "eval.every_epochs eval.batch_size eval.max_detections eval.pre_nms_top_k log.every_steps "
    "checkpoint.every_steps checkpoint.keep_latest optimizer.learning_rate "
    "optimizer.reference_batch_size loss.smooth_l1_beta loss.negative_ratio eval.soft_sigma "
    "eval.soft_candidates distributed.heartbeat_seconds model.shallow_channels "
    "model.deep_channels model.reduced_channels model.tum_width model.tum_out"
).split()
_NOT_NEGATIVE = (
    "seed max_steps max_nonfinite log.sample_images eval.patience "
    "eval.max_per_class loss.focal_gamma loss.box_weight optimizer.momentum "
    "optimizer.weight_decay optimizer.clip_norm optimizer.warmup_epochs optimizer.warmup_start "
    "optimizer.backbone_factor"
).split()
_UNIT_INTERVAL = (
    "model.norm_momentum optimizer.final_factor "
    "data.val_fraction data.repeat_threshold augment.flip_probability augment.expand_probability "
    "augment.crop_probability augment.crop_min_scale augment.photometric_probability "
    "anchors.positive_threshold anchors.negative_threshold eval.score_threshold "
    "eval.iou_threshold eval.soft_iou_threshold eval.soft_score_floor loss.focal_alpha "
    "optimizer.ema_decay optimizer.warmup_share model.norm_momentum"
).split()


def validate(config: ConfigDict) -> None:
    """Checks values that types cannot; raises ValueError naming key, value and what fits."""
    problems = _check_numbers(config)
    for key, choices in _CHOICES.items():
        if (value := get(config, key)) not in choices:
            problems.append(f"config.{key}={value!r}: give one of {', '.join(map(repr, choices))}")
    for key in _POSITIVE:
        if (value := get(config, key)) <= 0:
            problems.append(f"config.{key}={value}: must be above 0")
    for key in _NOT_NEGATIVE:
        if (value := get(config, key)) < 0:
            problems.append(f"config.{key}={value}: must be 0 or more")
    for key in _UNIT_INTERVAL:
        if (value := get(config, key)) < 0 or value > 1:
            problems.append(f"config.{key}={value}: must lie in 0..1")
    if not 0 <= config.model.frozen_stages <= 5:
        problems.append(f"config.model.frozen_stages={config.model.frozen_stages}: give 0 to 5")
    if config.model.backbone_official_stride and not config.model.backbone.startswith("resnet"):
        problems.append(
            f"config.model.backbone_official_stride=True: only ResNets have it, and "
            f"config.model.backbone={config.model.backbone!r}"
        )
    if not config.distributed.coordinator and config.distributed.num_processes > 1:
        problems.append(
            f"config.distributed.num_processes={config.distributed.num_processes} without "
            "config.distributed.coordinator; give 'auto' or 'host:port' (docs/clusters.md)"
        )
    if config.anchors.negative_threshold > config.anchors.positive_threshold:
        problems.append("config.anchors.negative_threshold is above positive_threshold")
    if config.anchors.kind == "retinanet" and config.anchors.steps:
        problems.append("config.anchors.steps is for kind 'ssd'; retinanet's cells share the input")
    if config.init_from and config.model.backbone_weights:
        problems.append(
            "config.init_from and config.model.backbone_weights are both given; give one: the "
            "former has the weights of the whole network"
        )
    problems += _check_schedule(config.optimizer)
    if config.optimizer.norm_warmup and config.model.norm_momentum == 1:
        problems.append(
            "config.model.norm_momentum=1.0 keeps BatchNorm's averages as they are: there is no "
            "config.optimizer.norm_warmup for it"
        )
    size = config.data.image_size
    if not _is_size(size):
        problems.append(f"config.data.image_size={size}: give (height, width), each 64 or more")
    if config.accumulation > 0 and config.batch_size % config.accumulation:
        problems.append(
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.accumulation={config.accumulation}"
        )
    problems += _check_lists(config) + _check_anchors(config) + _check_steps(config.optimizer)
    if problems:
        raise InputError("; ".join(problems))


def _check_schedule(optimizer: ConfigDict) -> list[str]:
    problems = []
    for epochs, shares, none in (
        ("warmup_epochs", "warmup_share", 0.0),
        ("decay_epochs", "decay_shares", ()),
    ):
        if optimizer[epochs] and optimizer[shares]:
            problems.append(
                f"config.optimizer.{epochs}={optimizer[epochs]} and {shares}={optimizer[shares]} "
                f"are both given: set one of them to {none}"
            )
    if not all(_is_number(share) and 0 <= share <= 1 for share in optimizer.decay_shares):
        problems.append(
            f"config.optimizer.decay_shares={optimizer.decay_shares}: give numbers in 0..1"
        )
    times = "decay_shares" if optimizer.decay_shares else "decay_epochs"
    if len(optimizer[times]) != len(optimizer.decay_factors):
        problems.append(
            f"config.optimizer.decay_factors={optimizer.decay_factors}: give one for each of the "
            f"{len(optimizer[times])} {times}"
        )
    return problems


def _check_lists(config: ConfigDict) -> list[str]:
    problems = []
    for key in ("mean", "std"):
        value = config.data[key]
        if len(value) != 3 or not all(map(_is_number, value)):
            problems.append(f"config.data.{key}={value}: give three numbers, R, G and B, 0..255")
        elif key == "std" and not min(value) > 0:
            problems.append(f"config.data.std={value}: the image is divided by it; give above 0")
        elif not 0 <= min(value) <= max(value) <= 255:
            problems.append(f"config.data.{key}={value}: must lie in 0..255")
    alphas = tuple(config.loss.focal_alpha_per_class)
    if not all(_is_number(alpha) and 0 <= alpha <= 1 for alpha in alphas):
        problems.append(f"config.loss.focal_alpha_per_class={alphas}: give numbers in 0..1")
    for size in config.eval.test_sizes:
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 64 for side in sides):
            problems.append(
                f"config.eval.test_sizes has {size!r}: give sides or (height, width), 64 or more"
            )
    if not all(_is_size(size) for size in config.data.train_sizes):
        problems.append(
            f"config.data.train_sizes={config.data.train_sizes}: give ((height, width), ...), each "
            "64 or more"
        )
    return problems + _check_data(config.data)


def _check_anchors(config: ConfigDict) -> list[str]:
    anchors, scales = config.anchors, config.model.num_scales
    problems = []
    positive = ("sizes", "steps", "aspect_ratios", "octave_scales", "variances")
    wrong = [key for key in positive if not all(_is_number(v) and v > 0 for v in anchors[key])]
    for key in wrong:
        problems.append(f"config.anchors.{key}={anchors[key]}: give numbers above 0")
    counts = {
        "sizes": scales + (anchors.kind == "ssd") if anchors.sizes else 0,
        "steps": scales if anchors.steps and anchors.kind == "ssd" else len(anchors.steps),
        "variances": 2,
    }
    for key, count in counts.items():
        if key not in wrong and len(anchors[key]) != count:
            problems.append(
                f"config.anchors.{key}={anchors[key]}: give {count} values for "
                f"kind={anchors.kind!r} and config.model.num_scales={scales}"
            )
    if "sizes" not in wrong and list(anchors.sizes) != sorted(set(anchors.sizes)):
        problems.append(f"config.anchors.sizes={anchors.sizes}: must rise")
    if anchors.kind == "retinanet" and not anchors.octave_scales:
        problems.append("config.anchors.octave_scales=(): give at least one, such as (1.0,)")
    return problems


def _check_steps(optimizer: ConfigDict) -> list[str]:
    """Checks the numbers of the optimiser and its schedule."""
    problems = []
    if not 0 <= optimizer.momentum < 1:
        problems.append(
            f"config.optimizer.momentum={optimizer.momentum}: must lie in 0..1, below 1"
        )
    for key in ("decay_epochs", "decay_factors"):
        if not all(_is_number(value) and value > 0 for value in optimizer[key]):
            problems.append(f"config.optimizer.{key}={optimizer[key]}: give numbers above 0")
        elif key == "decay_epochs" and list(optimizer[key]) != sorted(set(optimizer[key])):
            problems.append(f"config.optimizer.{key}={optimizer[key]}: must rise")
    return problems


def _check_data(data: ConfigDict) -> list[str]:
    """Checks what names the data; whether it is there shows when it is read."""
    problems = []
    key = "val_csv" if data.format == "csv" else "val_split"
    if not data[key] and not 0 < data.val_fraction < 1:
        problems.append(
            f"config.data.val_fraction={data.val_fraction}: with config.data.{key}='' it is the "
            "share of images split off for validation; give a number above 0 and below 1"
        )
    if data.format not in FORMATS and not all(p.isidentifier() for p in data.format.split(".")):
        problems.append(
            f"config.data.format={data.format!r}: give {', '.join(FORMATS)}, or the dotted name of "
            "a Python module"
        )
    for key in ("extra_train", "labels_filter"):
        if not all(isinstance(entry, str) and entry for entry in data[key]):
            problems.append(f"config.data.{key}={data[key]!r}: give texts, such as ('a','b')")
        elif len(set(data[key])) < len(data[key]):
            problems.append(f"config.data.{key}={data[key]!r}: an entry is there twice")
    pairs = [isinstance(pair, tuple | list) and len(pair) == 2 for pair in data.class_map]
    if not all(pairs) or not all(isinstance(name, str) for p in data.class_map for name in p):
        problems.append(
            f"config.data.class_map={data.class_map!r}: give pairs, such as (('van','car'),)"
        )
    for key, least in (("num_workers", 0), ("num_threads", 1)):
        if data[key] != -1 and data[key] < least:
            problems.append(
                f"config.data.{key}={data[key]}: give {least} or more, or -1 for what fits the host"
            )
    if data.parent_label and data.format != "openimages":
        problems.append('config.data.parent_label is for config.data.format="openimages"')
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def validate_classes(config: ConfigDict, class_names: Sequence[str]) -> None:
    """Checks values that depend on the classes; raises ValueError naming them.

    Args:
      class_names: in the order of class ids.
    """
    if not class_names and (config.data.class_map or config.data.labels_filter):
        raise InputError("config.data.class_map and labels_filter leave no class; keep one")
    alphas = tuple(config.loss.focal_alpha_per_class)
    if alphas and len(alphas) != len(class_names):
        raise InputError(
            f"config.loss.focal_alpha_per_class has {len(alphas)} values for {len(class_names)} "
            f"classes; give one for each of {', '.join(class_names)}, in this order, or ()"
        )


def _is_size(size) -> bool:
    """True for (height, width) of at least 64 pixels."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        return False
    return all(isinstance(side, int) and side >= 64 for side in size)


def _check_numbers(config: ConfigDict) -> list[str]:
    """Finds numbers, also in tuples, that are not finite or too large for a device."""
    problems = []
    for key, value in flatten(config).items():
        limit = 2**32 if key == "seed" else 2**31
        for number in _leaves(value):
            if isinstance(number, int) and number >= limit:
                problems.append(f"config.{key}={value}: must be below {limit}")
            elif isinstance(number, float) and not math.isfinite(number):
                problems.append(f"config.{key}={value}: give finite numbers")
    return problems


def _leaves(value: object) -> list[object]:
    if isinstance(value, tuple | list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [value]
