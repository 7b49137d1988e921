"""The configuration: every key with its default, meaning and unit, and the checks on their values.

Experiments (`experiments/*.py`) start from `default_config()` and override a few keys; the command
line overrides the rest with `--config.section.key=value`. Only plain values: no callables, no
little languages. Code below the verbs never sees a ConfigDict, only the values it needs.
"""

import difflib
import importlib.resources
import importlib.util
import pathlib

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """Returns the defaults: the paper's VGG16 at 512 px with our focal-loss training recipe."""
    config = ConfigDict()
    config.seed = 0  # initial weights, data order, augmentation and validation split
    config.epochs = 150.0  # passes over the training images; the schedule spans them
    config.max_steps = 0  # stop (resumably) after this optimiser step; 0: run all epochs
    config.batch_size = 32  # images per optimiser step, over all devices and processes
    config.accumulation = 1  # micro-batches per optimiser step; divides the batch on a device
    config.platform = ""  # "gpu", "tpu", "cpu": refuse to run on another; "": what jax finds
    config.deterministic = False  # GPU: deterministic kernels (slower); the CPU always is
    config.data = _data()
    config.augment = _augment()
    config.model = _model()
    config.anchors = _anchors()
    config.loss = _loss()
    config.optimizer = _optimizer()
    config.eval = _eval()
    config.log = ConfigDict(
        dict(
            every_steps=20,  # one line, one history record and one event per so many steps
            sample_images=8,  # augmented training pictures with boxes, saved as the run starts
        )
    )
    config.checkpoint = ConfigDict(
        dict(
            every_steps=1000,  # besides the checkpoint that every evaluation writes
            keep_latest=2,  # newest checkpoints kept, beside the best by validation AP
        )
    )
    return config


def _data() -> ConfigDict:
    return ConfigDict(
        dict(
            train_csv="data/train.csv",  # rows path,x1,y1,x2,y2,class_name; pixels from 0,
            #   x2 and y2 exclusive edges; `path,,,,,` is an image without objects
            val_csv="data/val.csv",  # "": a seeded part of the training images is split off
            classes_csv="data/classes.csv",  # rows class_name,id; ids from 0
            val_fraction=0.2,  # share of images split off where val_csv is ""
            image_size=(512, 512),  # (height, width) of the network input, pixels
            resize="stretch",  # "stretch" (the official code) or "letterbox" (keeps the aspect)
            mean=(123.675, 116.28, 103.53),  # RGB, 0..255; subtracted, ImageNet
            std=(58.395, 57.12, 57.375),  # RGB, 0..255; divided by
            num_workers=0,  # grain worker processes; 0: threads of this process
            num_threads=2,  # reading threads per process
        )
    )


def _augment() -> ConfigDict:
    return ConfigDict(
        dict(
            enabled=True,  # False: resize only
            flip_probability=0.5,  # mirror left-right
            expand_probability=0.5,  # zoom out onto the mean colour
            expand_max=4.0,  # largest zoom-out, linear
            crop_probability=0.86,  # 6/7: SSD draws one of seven modes, one of them "no crop"
            crop_min_scale=0.3,  # smallest crop side as a share of the image side
            photometric_probability=0.5,  # each of brightness, contrast, saturation and hue
            brightness=32.0,  # largest shift, 0..255
            contrast=0.5,  # largest relative change
            saturation=0.5,  # largest relative change
            hue=18.0,  # largest rotation, degrees
        )
    )


def _model() -> ConfigDict:
    return ConfigDict(
        dict(
            backbone="vgg16",  # or "resnet18", "resnet34"
            backbone_width=1.0,  # multiplies the channels of the backbone
            backbone_norm=False,  # BatchNorm in VGG: needed to train it from random weights
            backbone_weights="",  # ImageNet VGG16 as .safetensors (torchvision or timm names)
            frozen_stages=0,  # first stages of the backbone that do not learn, 0..5
            num_levels=8,  # TUMs
            num_scales=6,  # maps per TUM
            shallow_channels=256,  # FFMv1, from the stride-8 map
            deep_channels=512,  # FFMv1, from the stride-16 map
            reduced_channels=128,  # FFMv2, base feature
            tum_width=256,  # channels inside a TUM
            tum_out=128,  # channels of each TUM output
            sfam=True,  # squeeze and excitation over the levels
            sfam_shared=False,  # official code: one pair of layers for all scales
            share_base_reduction=False,  # official code: one reduction for all levels
            largest_scale_norm=False,  # official code: BatchNorm on the largest scale
            norm_momentum=0.99,  # share of BatchNorm's running averages that a step keeps
            upsample="nearest",  # or "bilinear"
            dtype="float32",  # of computation; "bfloat16" for GPUs; weights stay float32
        )
    )


def _anchors() -> ConfigDict:
    return ConfigDict(
        dict(
            sizes=(),  # pixels, num_scales + 1 rising values; (): the official sizes for the input
            aspect_ratios=(2.0, 3.0),  # beside the two squares of each cell; with their inverses
            clip=True,  # to the image
            variances=(0.1, 0.2),  # of centre and size in the box encoding
            positive_threshold=0.5,  # IoU from which an anchor is positive
            negative_threshold=0.4,  # IoU under which it is background; between: ignored
        )
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        dict(
            focal_alpha=0.25,
            focal_gamma=2.0,
            smooth_l1_beta=0.11,  # where the box loss turns from square to linear
            box_weight=1.0,
        )
    )


def _optimizer() -> ConfigDict:
    return ConfigDict(
        dict(
            name="sgd",  # or "adamw"
            learning_rate=2e-3,  # at reference_batch_size images per step
            reference_batch_size=32,  # sgd scales linearly from it, adamw with the square root
            momentum=0.9,  # sgd
            weight_decay=5e-4,  # on kernels only, not on biases and norms
            clip_norm=10.0,  # global gradient norm; 0: no clipping
            schedule="step",  # or "cosine", "constant"
            warmup_epochs=5.0,  # linear from 0
            decay_epochs=(90.0, 120.0),  # schedule "step": times decay_factor at each
            decay_factor=0.1,
            final_factor=0.01,  # schedule "cosine": share of the learning rate at the end
            ema_decay=0.9998,  # moving average of weights and statistics, reached by a warm-up
        )
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        dict(
            every_epochs=5.0,  # validation, with a checkpoint; always at the end as well
            batch_size=8,  # images per detection call, over all devices
            score_threshold=0.01,
            iou_threshold=0.5,  # NMS
            pre_nms_top_k=1000,  # (anchor, class) pairs of an image that enter NMS
            max_detections=100,  # per image
            class_agnostic=False,  # True: boxes of different classes suppress each other
            patience=0,  # stop after so many evaluations without a better AP; 0: never
        )
    )


_CHOICES = {
    "data.resize": ("stretch", "letterbox"),
    "model.upsample": ("nearest", "bilinear"),
    "model.dtype": ("float32", "bfloat16"),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("step", "cosine", "constant"),
    "platform": ("", "cpu", "gpu", "tpu"),
}
_POSITIVE = (
    "epochs batch_size accumulation data.num_threads model.num_levels model.backbone_width "
    "eval.every_epochs eval.batch_size eval.max_detections eval.pre_nms_top_k log.every_steps "
    "checkpoint.every_steps checkpoint.keep_latest optimizer.learning_rate "
    "optimizer.reference_batch_size loss.smooth_l1_beta"
).split()
_NOT_NEGATIVE = (
    "seed max_steps data.num_workers log.sample_images eval.patience optimizer.momentum "
    "optimizer.weight_decay optimizer.clip_norm optimizer.warmup_epochs"
).split()
_UNIT_INTERVAL = (
    "data.val_fraction augment.flip_probability augment.expand_probability "
    "augment.crop_probability augment.crop_min_scale augment.photometric_probability "
    "anchors.positive_threshold anchors.negative_threshold eval.score_threshold "
    "eval.iou_threshold optimizer.ema_decay"
).split()


def validate(config: ConfigDict) -> None:
    """Checks values that types cannot; raises ValueError naming key, value and what fits."""
    problems = []
    for key, choices in _CHOICES.items():
        if (value := get(config, key)) not in choices:
            problems.append(f"config.{key}={value!r}: give one of {', '.join(map(repr, choices))}")
    for key in _POSITIVE:
        if not (value := get(config, key)) > 0:
            problems.append(f"config.{key}={value}: must be above 0")
    for key in _NOT_NEGATIVE:
        if not (value := get(config, key)) >= 0:
            problems.append(f"config.{key}={value}: must be 0 or more")
    for key in _UNIT_INTERVAL:
        if not 0 <= (value := get(config, key)) <= 1:
            problems.append(f"config.{key}={value}: must lie in 0..1")
    if not 0 <= config.model.frozen_stages <= 5:
        problems.append(f"config.model.frozen_stages={config.model.frozen_stages}: give 0 to 5")
    if config.anchors.negative_threshold > config.anchors.positive_threshold:
        problems.append("config.anchors.negative_threshold is above positive_threshold")
    size = config.data.image_size
    if len(size) != 2 or not all(isinstance(side, int) and side >= 64 for side in size):
        problems.append(f"config.data.image_size={size}: give (height, width), each 64 or more")
    if config.accumulation > 0 and config.batch_size % config.accumulation:
        problems.append(
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.accumulation={config.accumulation}"
        )
    if problems:
        raise ValueError("; ".join(problems))


def get(config: ConfigDict, dotted: str):
    """Returns the value at a dotted key, such as "data.train_csv"."""
    for part in dotted.split("."):
        config = config[part]
    return config


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Returns {dotted key: value} of all leaves, in order."""
    flat = {}
    for key in sorted(config):
        value = config[key]
        inner = isinstance(value, ConfigDict)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def nearest_key(config: ConfigDict, dotted: str) -> str:
    """Returns the existing dotted key most like `dotted`: by its whole, else by its last part."""
    keys = list(flatten(config))
    if found := difflib.get_close_matches(dotted, keys, n=1, cutoff=0.6):
        return found[0]
    last = {key.rpartition(".")[2]: key for key in keys}
    found = difflib.get_close_matches(dotted.rpartition(".")[2], list(last), n=1, cutoff=0.0)
    return last[found[0]]


def experiments_dir() -> pathlib.Path:
    """Returns the folder of the shipped experiments: in the package, or beside it in a checkout."""
    package = pathlib.Path(str(importlib.resources.files("m2det_jax")))
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def experiment_path(name: str) -> pathlib.Path:
    """Returns the file of an experiment given as a path or as the name of a shipped one.

    Raises:
      ValueError: there is no such file; the message lists the shipped names.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for p in sorted(experiments_dir().glob("*.py"))}
    # `experiments/vgg512.py` means the shipped one also where there is no checkout.
    if path.stem in shipped and str(path.parent) in (".", "experiments"):
        return shipped[path.stem]
    raise ValueError(f"--config {name}: no such file; shipped experiments: {', '.join(shipped)}")


def load_experiment(name: str) -> ConfigDict:
    """Returns the config of an experiment given as a path or as the name of a shipped one."""
    spec = importlib.util.spec_from_file_location("m2det_jax_experiment", experiment_path(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
