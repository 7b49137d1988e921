"""Keys of the config: every one with its type, default, check and meaning, once.

A key is declared by what may become of it when a run is resumed:

  key       part of what a run is: a run with another value is another run.
  free_key  a resumed run may have another value: it decides where the run ends, how fast it goes,
            what it writes, or what happens when something fails, but not what its steps compute.
            (The data set may move or change its format; what is in it is compared by itself.
            epochs stretches a cosine schedule, and shares of the run, which is said. What a run
            started from is not read again.)
  own_key   a free key in which the processes of one run may differ too: where a host has its
            files, and how it reads them.

A new key needs the default under which a run does what it did before there was the key: configs
that older versions have stored get it.

The verbs and experiments change a ConfigDict with these keys (`default_config`); all that comes
after reads a `Config`, which cannot be changed (`resolve`).
"""

import dataclasses
from typing import Any, TypeAlias

from m2det_jax.config.key_checks import (
    Check,
    at_least_or_automatic,
    input_size,
    input_sizes,
    names_of,
    not_negative,
    one_of,
    one_of_or_module,
    pairs_of_texts,
    positive,
    positives,
    rgb,
    rgb_divisor,
    rising_positives,
    share,
    share_below_1,
    shares,
    texts,
    view_sizes,
    whole_range,
)

# The names in model.backbones.BACKBONES, not imported: configs are checked before jax is loaded.
BACKBONES = (
    "densenet121", "densenet169", "densenet201", "mobilenet_v1", "mobilenet_v2", "resnet101",
    "resnet152", "resnet18", "resnet34", "resnet50", "vgg16", "vgg19",
)  # fmt: skip
# The names in data.formats.sources.FORMATS, not imported either.
FORMATS = ("csv", "coco", "voc", "kitti", "openimages", "yolo")
# The services in run.trackers, which have the names of their packages.
TRACKERS = ("wandb", "mlflow", "trackio")

Pair: TypeAlias = tuple[float, float]
Rgb: TypeAlias = tuple[float, float, float]


def key(default: Any, check: Check | None = None) -> Any:
    """Declares a key.

    Args:
        default: its value where nobody gives another.
        check: of `key_checks`; None: every value of its type fits.
    """
    return _declared(default, check)


def free_key(default: Any, check: Check | None = None) -> Any:
    """Declares a key that may change when a run is resumed."""
    return _declared(default, check, free=True)


def own_key(default: Any, check: Check | None = None) -> Any:
    """Declares a key that may change, and that each process of a run may have in its own way."""
    return _declared(default, check, free=True, own=True)


def _declared(default: Any, check: Check | None, *, free: bool = False, own: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"check": check, "free": free, "own": own})


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Several processes that train together."""

    coordinator: str = own_key("")  # "": one process; "auto": from SLURM, Open MPI, GKE; or
    #   "host:port"
    num_processes: int = free_key(0)  # with "host:port": processes of the run
    process_id: int = own_key(0)  # with "host:port": this one, 0 .. num_processes - 1
    heartbeat_seconds: int = free_key(100, positive)  # a process that is silent for so long is
    #   dead, and all end


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, their boxes, and the input of the network."""

    train_csv: str = own_key("data/train.csv")  # rows path,x1,y1,x2,y2,class_name; pixels from 0,
    #   x2 and y2 exclusive edges; `path,,,,,` is an image without objects
    val_csv: str = own_key("data/val.csv")  # "": a seeded part of the training images is split off
    classes_csv: str = own_key("data/classes.csv")  # rows class_name,id; ids from 0
    format: str = free_key("csv", one_of_or_module(*FORMATS))  # or a Python module of your own with
    #   read(root, split); docs/data.md has the layout of each
    root: str = own_key("")  # other formats than "csv": folder of the data set
    train_split: str = free_key("train")  # and the names of its splits
    val_split: str = free_key("val")  # "": a seeded part of the training images is split off
    extra_train: tuple[str, ...] = own_key((), texts)  # more training sets: CSV files, or roots
    #   with the same train_split
    class_map: tuple = free_key((), pairs_of_texts)  # ((from, to), ...): rename, merge, or (to "")
    #   drop classes when reading
    labels_filter: tuple[str, ...] = free_key((), texts)  # classes to keep, in this order, after
    #   class_map; (): all
    parent_label: str = free_key("")  # "openimages": only this class of the hierarchy and those
    #   under it
    on_bad_box: str = free_key("error", one_of("error", "clip", "drop"))  # boxes that leave their
    #   image, have no area or are there twice: refuse to train, "clip" (cut to the image; what is
    #   no box is left out), or "drop"
    val_fraction: float = key(0.2, share)  # share of images split off where val_csv is ""
    image_size: tuple[int, int] = key((512, 512), input_size)  # (height, width) of the network
    #   input, pixels
    train_sizes: tuple = key((), input_sizes)  # ((height, width), ...): one drawn per step, each
    #   compiled once; (): image_size alone, which evaluation and prediction always use
    repeat_threshold: float = key(0.0, share)  # LVIS: classes in a smaller share of the images are
    #   seen more often, by the root of threshold over share; 0: every image once an epoch
    resize: str = key("stretch", one_of("stretch", "letterbox"))  # "stretch" (the official code) or
    #   "letterbox" (keeps the aspect)
    mean: Rgb = key((123.675, 116.28, 103.53), rgb)  # RGB, 0..255; subtracted, ImageNet
    std: Rgb = key((58.395, 57.12, 57.375), rgb_divisor)  # RGB, 0..255; divided by
    channel_order: str = key("rgb", one_of("rgb", "bgr"))  # in which the network takes the
    #   channels; "bgr": Caffe's VGG16 and the official weights. mean and std are given in RGB order
    #   all the same
    on_bad_image: str = free_key("error", one_of("error", "skip"))  # a training image cannot be
    #   read; "skip": the next one instead
    num_workers: int = own_key(-1, at_least_or_automatic(0))  # processes that read images; 0:
    #   threads of this one; -1: what fits the cores and devices, see the log
    num_threads: int = own_key(-1, at_least_or_automatic(1))  # reading threads of each such
    #   process, or of this one; -1: likewise


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training pictures; `AugmentSettings` checks their values and order."""

    enabled: bool = key(True)  # False: resize only
    pipeline: tuple[str, ...] = key(("expand", "crop", "flip", "photometric"))  # steps, in this
    #   order; also "affine", "scale_jitter", "paste", "mosaic" (first) and "mixup" (last);
    #   docs/augmentation.md shows them. Keys of steps that are not named do nothing
    flip_probability: float = key(0.5, share)  # mirror left-right
    expand_probability: float = key(0.5, share)  # zoom out onto the mean colour
    expand_max: float = key(4.0)  # largest zoom-out, linear
    crop_probability: float = key(0.86, share)  # 6/7: SSD draws one of seven modes, one "no crop"
    crop_min_scale: float = key(0.3, share)  # smallest crop side as a share of the image side
    photometric_probability: float = key(0.5, share)  # each of brightness, contrast, saturation
    #   and hue
    brightness: float = key(32.0)  # largest shift, 0..255
    contrast: float = key(0.5)  # largest relative change
    saturation: float = key(0.5)  # largest relative change
    hue: float = key(18.0)  # largest rotation, degrees
    affine_probability: float = key(0.5)  # rotation, shear, scale and translation, as one map
    affine_rotation: float = key(10.0)  # largest angle, degrees, both ways
    affine_shear: float = key(5.0)  # largest angle, degrees, both ways
    affine_scale: Pair = key((0.9, 1.1))  # smallest and largest factor, drawn for each axis
    affine_translation: float = key(0.1)  # largest move, a share of the picture's side
    jitter_probability: float = key(1.0)  # scale_jitter: another size, then cut or padded
    jitter_scale: Pair = key((0.1, 2.0))  # smallest and largest factor; "standard" is (0.8, 1.25)
    mosaic_probability: float = key(0.5)  # four images in one picture
    mosaic_scale: Pair = key((0.4, 1.0))  # factor of each; 1: as large as it would be alone
    mosaic_joint: float = key(0.25)  # where the four meet: that share of the sides from the edges
    mixup_probability: float = key(0.15)  # two pictures through each other
    mixup_min_share: float = key(0.4)  # smallest share of the fainter one, 0..0.5
    paste_probability: float = key(0.5)  # objects of other images copied onto this one
    paste_max: int = key(3)  # most objects pasted onto a picture
    paste_scale: Pair = key((0.5, 1.5))  # factor of their size
    paste_max_covered: float = key(0.3)  # most of a box's area that pasted objects may hide
    min_visible: float = key(0.3)  # affine, mosaic: a box of which a smaller share is seen goes


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    backbone: str = key("vgg16", one_of(*BACKBONES))
    backbone_width: float = key(1.0, positive)  # multiplies the channels of the backbone
    backbone_norm: bool = key(False)  # BatchNorm in VGG: needed to train it from random weights
    backbone_official_stride: bool = key(False)  # ResNets: layer 3 at stride 8, as in the official
    #   code
    backbone_weights: str = own_key("")  # .safetensors or .pth of torchvision, timm or SSD, or a
    #   folder that `m2det_jax.convert backbone` wrote; docs/weights.md
    frozen_stages: int = key(0, whole_range(0, 5))  # first stages of the backbone that do not learn
    num_levels: int = key(8, positive)  # TUMs
    num_scales: int = key(6)  # maps per TUM
    shallow_channels: int = key(256, positive)  # FFMv1, from the stride-8 map
    deep_channels: int = key(512, positive)  # FFMv1, from the stride-16 map
    reduced_channels: int = key(128, positive)  # FFMv2, base feature
    tum_width: int = key(256, positive)  # channels inside a TUM
    tum_out: int = key(128, positive)  # channels of each TUM output
    sfam: bool = key(True)  # squeeze and excitation over the levels
    sfam_shared: bool = key(False)  # official code: one pair of layers for all scales
    share_base_reduction: bool = key(False)  # official code: one reduction for all levels
    largest_scale_norm: bool = key(False)  # official code: BatchNorm on the largest scale
    norm_momentum: float = key(0.99, share)  # share of BatchNorm's running averages that a step
    #   keeps
    norm_over: str = key("global", one_of("global", "device"))  # BatchNorm's statistics: of the
    #   images of all devices, or of each device's own, without a message (docs/gpu.md)
    upsample: str = key("nearest", one_of("nearest", "bilinear"))
    head: str = key("conv", one_of("conv", "retinanet"))  # one 3x3 convolution a scale;
    #   "retinanet": five, shared by all scales
    remat: bool = free_key(False)  # recompute TUMs and backbone in the backward pass: less memory,
    #   more time
    dtype: str = key("float32", one_of("float32", "bfloat16"))  # of computation; "bfloat16" for
    #   GPUs; weights stay float32


@dataclasses.dataclass(frozen=True)
class Anchors:
    """The anchors, and which of them an object is matched to."""

    kind: str = key("ssd", one_of("ssd", "retinanet"))  # 2 squares and the ratios of one size a
    #   cell, or "retinanet": each square and ratio in all octave_scales
    sizes: tuple[float, ...] = key((), rising_positives)  # pixels; "ssd": num_scales + 1 values,
    #   (): the official ones for the input; "retinanet": num_scales values, (): the short side,
    #   halved scale by scale
    steps: tuple[float, ...] = key((), positives)  # "ssd": pixels between cells, a value a scale;
    #   (): the input over the map
    aspect_ratios: tuple[float, ...] = key((2.0, 3.0), positives)  # beside the squares of each
    #   cell; with their inverses
    octave_scales: tuple[float, ...] = key((1.0, 2 ** (1 / 3), 2 ** (2 / 3)), positives)  # for
    #   "retinanet": factors on the size
    clip: bool = key(True)  # "ssd": to data.image_size
    variances: Pair = key((0.1, 0.2), positives)  # of centre and size in the box encoding
    positive_threshold: float = key(0.5, share)  # IoU from which an anchor is positive
    negative_threshold: float = key(0.4, share)  # IoU under which it is background; between:
    #   ignored


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss."""

    kind: str = key("focal", one_of("focal", "softmax"))  # "softmax": cross-entropy with a
    #   background class and hard negatives
    focal_alpha: float = key(0.25, share)  # weight of positive logits; of negative ones: one minus
    #   that
    focal_alpha_per_class: tuple[float, ...] = key((), shares)  # one alpha a class, in the order of
    #   ids; (): focal_alpha
    focal_gamma: float = key(2.0, not_negative)
    negative_ratio: float = key(3.0, positive)  # "softmax": hardest negatives per positive anchor
    #   of an image
    smooth_l1_beta: float = key(0.11, positive)  # where the box loss turns from square to linear
    box_weight: float = key(1.0, not_negative)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimiser, the schedule of its learning rate, and the moving averages."""

    name: str = key("sgd", one_of("sgd", "adamw"))
    learning_rate: float = key(2e-3, positive)  # at reference_batch_size images per step
    reference_batch_size: int = key(32, positive)  # sgd scales linearly from it, adamw with the
    #   square root
    momentum: float = key(0.9, share_below_1)  # sgd
    weight_decay: float = key(5e-4, not_negative)  # on kernels only, not on biases and norms
    clip_norm: float = key(1000.0, not_negative)  # global gradient norm; 0: none. Eight TUMs
    #   multiply gradients: those of random weights are in the thousands, and 10 would all but stop
    #   the heads
    schedule: str = key("step", one_of("step", "cosine", "constant"))
    backbone_factor: float = key(1.0, not_negative)  # times the learning rate, for the backbone's
    #   parameters
    warmup_epochs: float = key(5.0, not_negative)  # linear, to the learning rate
    warmup_share: float = key(0.0, share)  # in place of warmup_epochs: the same as a share of the
    #   run
    warmup_start: float = key(0.0, not_negative)  # where it begins, not scaled; 0: one step's share
    #   of the rise
    decay_epochs: tuple[float, ...] = key((90.0, 120.0), rising_positives)  # schedule "step";
    #   epochs count from the run's start
    decay_shares: tuple[float, ...] = key((), shares)  # in place of decay_epochs: the same as
    #   shares of the run
    decay_factors: tuple[float, ...] = key((0.1, 0.1), positives)  # schedule "step": what each of
    #   them multiplies it by
    final_factor: float = key(0.01, share)  # schedule "cosine": share of the learning rate at the
    #   end
    ema_decay: float = key(0.9998, share)  # moving average of weights and statistics, reached by a
    #   warm-up
    norm_warmup: bool = key(False)  # model.norm_momentum is reached by the same warm-up


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation, and which boxes of an image are its detections."""

    every_epochs: float = free_key(5.0, positive)  # validation, with a checkpoint; always at the
    #   end as well
    batch_size: int = free_key(8, positive)  # images per detection call, over all devices
    score_threshold: float = key(0.01, share)  # scores above it enter NMS
    nms: str = key("hard", one_of("hard", "soft_linear", "soft_gaussian"))  # soft: overlapping
    #   boxes lose score instead
    iou_threshold: float = key(0.5, share)  # "hard": IoU above which a box goes
    pre_nms_top_k: int = key(1000, positive)  # "hard": (anchor, class) pairs of an image that enter
    soft_iou_threshold: float = key(0.3, share)  # "soft_linear": IoU above which a score is times
    #   1 - IoU
    soft_sigma: float = key(0.5, positive)  # "soft_gaussian": a score is times exp(-IoU^2 / sigma)
    soft_score_floor: float = key(0.001, share)  # soft: boxes whose score falls below it go
    soft_candidates: int = key(200, positive)  # soft: boxes of a class that enter, the highest;
    #   crowds need more
    max_per_class: int = key(0, not_negative)  # detections of a class per image; 0: no limit
    max_detections: int = key(100, positive)  # per image
    class_agnostic: bool = key(False)  # True: boxes of different classes suppress each other
    test_sizes: tuple = free_key((), view_sizes)  # evaluate, predict: sides or (height, width) of
    #   several inputs, pixels, detections merged by the NMS; (): data.image_size. Not in validation
    #   of a training
    test_flip: bool = free_key(False)  # evaluate, predict: merge with those of the mirrored images
    patience: int = free_key(0, not_negative)  # stop after so many evaluations without a better AP;
    #   0: never


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run writes for people."""

    every_steps: int = free_key(20, positive)  # one line, one history record and one event per so
    #   many steps
    sample_images: int = free_key(8, not_negative)  # augmented training pictures with boxes, saved
    #   as the run starts
    trackers: tuple[str, ...] = free_key((), names_of(*TRACKERS))  # get the history too: "wandb",
    #   "mlflow", "trackio"; docs/training.md
    report: bool = free_key(True)  # report.html when the run ends (docs/report.md)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run keeps of its states."""

    every_steps: int = free_key(1000, positive)  # besides the checkpoint that every evaluation
    #   writes
    keep_latest: int = free_key(2, positive)  # newest checkpoints kept, beside the best by
    #   validation AP


@dataclasses.dataclass(frozen=True)
class Config:
    """All keys. The defaults are the paper's VGG16 at 512 px with our focal-loss recipe."""

    seed: int = key(0, not_negative)  # initial weights, data order, augmentation and validation
    #   split
    epochs: float = free_key(150.0, positive)  # passes over the training images; the schedule
    #   spans them
    max_steps: int = free_key(0, not_negative)  # stop (resumably) after this optimiser step; 0: run
    #   all epochs
    batch_size: int = key(32, positive)  # images per optimiser step, over all devices and processes
    accumulation: int = key(1, positive)  # micro-batches per optimiser step; divides the batch on a
    #   device
    platform: str = free_key("", one_of("", "cpu", "gpu", "tpu"))  # refuse to run on another; "":
    #   what jax finds
    deterministic: bool = free_key(False)  # GPU: deterministic kernels (slower); the CPU always is
    init_from: str = own_key("")  # workdir of a run, or of converted weights, to take the first
    #   weights of
    init_checkpoint: str = free_key("latest")  # which there: "latest", "best" or a step
    on_nonfinite: str = free_key("stop", one_of("stop", "skip"))  # loss or gradient not finite;
    #   "skip": leave that update out
    max_nonfinite: int = free_key(10, not_negative)  # on_nonfinite "skip": stop after more such
    #   steps in a run
    sharding: str = free_key("replicated", one_of("replicated", "fsdp"))  # "fsdp": split weights
    #   and optimiser state over the devices
    distributed: Distributed = Distributed()
    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    anchors: Anchors = Anchors()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    eval: Eval = Eval()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()


def declared(section: type = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Returns the declaration of every key, by its dotted name, in order."""
    found: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(section):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found |= declared(field.type, f"{name}.")
        else:
            found[name] = field
    return found


FREE_KEYS = frozenset(name for name, field in declared().items() if field.metadata["free"])
OWN_KEYS = frozenset(name for name, field in declared().items() if field.metadata["own"])
