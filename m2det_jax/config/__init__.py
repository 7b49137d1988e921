"""The configuration: every key with its default, meaning and unit.

Experiments (`experiments/*.py`) start from `default_config()` and override a few keys; the command
line overrides the rest with `--config.section.key=value`. Only plain values: no callables, no
little languages. Code below the verbs never sees a ConfigDict, only the values it needs.
"""

from ml_collections import ConfigDict

# A workdir may be resumed with other values of these: they decide where a run ends, how fast it
# goes, what it writes, or what happens when something fails, but not what its steps compute. (The
# data set may move or change its format; what is in it is compared by itself. config.epochs
# stretches a cosine schedule, and shares of the run, which is said. What a run started from is not
# read again.) All other keys are part of what a run is.
FREE_KEYS = frozenset(
    (
        "epochs max_steps init_from init_checkpoint "
        "platform deterministic sharding distributed.coordinator "
        "distributed.num_processes distributed.process_id distributed.heartbeat_seconds "
        "model.backbone_weights model.remat on_nonfinite max_nonfinite data.format data.root "
        "data.train_split data.val_split data.extra_train "
        "data.class_map data.labels_filter data.parent_label data.on_bad_box data.train_csv "
        "data.val_csv data.classes_csv data.num_workers data.num_threads data.on_bad_image "
        "eval.every_epochs eval.batch_size eval.patience eval.test_sizes eval.test_flip "
        "log.every_steps log.sample_images checkpoint.every_steps checkpoint.keep_latest"
    ).split()
)

# The processes of a run must agree on all keys but these: where a host has its files, and how it
# reads them.
OWN_KEYS = frozenset(
    (
        "distributed.coordinator distributed.process_id data.root data.extra_train data.train_csv "
        "data.val_csv data.classes_csv data.num_workers data.num_threads init_from "
        "model.backbone_weights"
    ).split()
)


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
    config.init_from = ""  # workdir of a run, or of converted weights, to take the first weights of
    config.init_checkpoint = "latest"  # which there: "latest", "best" or a step
    config.on_nonfinite = "stop"  # loss or gradient not finite; "skip": leave that update out
    config.max_nonfinite = 10  # on_nonfinite "skip": stop after more such steps in a run
    config.sharding = "replicated"  # "fsdp": split weights and optimiser state over the devices
    config.distributed = ConfigDict(
        dict(
            coordinator="",  # "": one process; "auto": from SLURM, Open MPI, GKE; or "host:port"
            num_processes=0,  # with "host:port": processes of the run
            process_id=0,  # with "host:port": this one, 0 .. num_processes - 1
            heartbeat_seconds=100,  # a process that is silent for so long is dead, and all end
        )
    )
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
            format="csv",  # or "coco", "voc", "kitti", "openimages", "yolo", or a Python module of
            #   your own with read(root, split); docs/data.md has the layout of each
            root="",  # other formats than "csv": folder of the data set
            train_split="train",  # and the names of its splits
            val_split="val",  # "": a seeded part of the training images is split off
            extra_train=(),  # more training sets: CSV files, or roots with the same train_split
            class_map=(),  # ((from, to), ...): rename, merge, or (to "") drop classes when reading
            labels_filter=(),  # classes to keep, in this order, after class_map; (): all
            parent_label="",  # "openimages": only this class of the hierarchy and those under it
            on_bad_box="error",  # boxes that leave their image, have no area or are there twice:
            #   refuse to train, "clip" (cut to the image; what is no box is left out), or "drop"
            val_fraction=0.2,  # share of images split off where val_csv is ""
            image_size=(512, 512),  # (height, width) of the network input, pixels
            train_sizes=(),  # ((height, width), ...): one drawn per step, each compiled once;
            #   (): image_size alone, which evaluation and prediction always use
            repeat_threshold=0.0,  # LVIS: classes in a smaller share of the images are seen more
            #   often, by the root of threshold over share; 0: every image once an epoch
            resize="stretch",  # "stretch" (the official code) or "letterbox" (keeps the aspect)
            mean=(123.675, 116.28, 103.53),  # RGB, 0..255; subtracted, ImageNet
            std=(58.395, 57.12, 57.375),  # RGB, 0..255; divided by
            channel_order="rgb",  # in which the network takes the channels; or "bgr" (Caffe's VGG16
            #   and the official weights). mean and std are given in RGB order all the same
            on_bad_image="error",  # a training image cannot be read; "skip": the next one instead
            num_workers=-1,  # processes that read images; 0: threads of this one; -1: what fits the
            #   cores and devices, see the log
            num_threads=-1,  # reading threads of each such process, or of this one; -1: likewise
        )
    )


def _augment() -> ConfigDict:
    return ConfigDict(
        dict(
            enabled=True,  # False: resize only
            pipeline=("expand", "crop", "flip", "photometric"),  # steps, in this order; also
            #   "affine", "scale_jitter", "paste", "mosaic" (first) and "mixup" (last);
            #   docs/augmentation.md shows them. Keys of steps that are not named do nothing
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
            affine_probability=0.5,  # rotation, shear, scale and translation, as one map
            affine_rotation=10.0,  # largest angle, degrees, both ways
            affine_shear=5.0,  # largest angle, degrees, both ways
            affine_scale=(0.9, 1.1),  # smallest and largest factor, drawn for each axis
            affine_translation=0.1,  # largest move, a share of the picture's side
            jitter_probability=1.0,  # scale_jitter: another size, then cut or padded
            jitter_scale=(0.1, 2.0),  # smallest and largest factor; "standard" is (0.8, 1.25)
            mosaic_probability=0.5,  # four images in one picture
            mosaic_scale=(0.4, 1.0),  # factor of each; 1: as large as it would be alone
            mosaic_joint=0.25,  # where the four meet: that share of the sides from the edges
            mixup_probability=0.15,  # two pictures through each other
            mixup_min_share=0.4,  # smallest share of the fainter one, 0..0.5
            paste_probability=0.5,  # objects of other images copied onto this one
            paste_max=3,  # most objects pasted onto a picture
            paste_scale=(0.5, 1.5),  # factor of their size
            paste_max_covered=0.3,  # most of a box's area that pasted objects may hide
            min_visible=0.3,  # affine, mosaic: a box of which a smaller share is seen goes
        )
    )


def _model() -> ConfigDict:
    return ConfigDict(
        dict(
            backbone="vgg16",  # or vgg19; resnet18, 34, 50, 101, 152; mobilenet_v1, _v2;
            #   densenet121, 169, 201
            backbone_width=1.0,  # multiplies the channels of the backbone
            backbone_norm=False,  # BatchNorm in VGG: needed to train it from random weights
            backbone_official_stride=False,  # ResNets: layer 3 at stride 8, as in the official code
            backbone_weights="",  # .safetensors or .pth of torchvision, timm or SSD, or a folder
            #   that `m2det_jax.convert backbone` wrote; docs/weights.md
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
            head="conv",  # one 3x3 convolution a scale; "retinanet": five, shared by all scales
            remat=False,  # recompute TUMs and backbone in the backward pass: less memory, more time
            dtype="float32",  # of computation; "bfloat16" for GPUs; weights stay float32
        )
    )


def _anchors() -> ConfigDict:
    return ConfigDict(
        dict(
            kind="ssd",  # 2 squares and the ratios of one size a cell, or "retinanet": each square
            #   and ratio in all octave_scales
            sizes=(),  # pixels, rising; "ssd": num_scales + 1 values, (): the official ones for the
            #   input; "retinanet": num_scales values, (): the short side, halved scale by scale
            steps=(),  # "ssd": pixels between cells, a value a scale; (): the input over the map
            aspect_ratios=(2.0, 3.0),  # beside the squares of each cell; with their inverses
            octave_scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),  # "retinanet": factors on the size
            clip=True,  # "ssd": to data.image_size
            variances=(0.1, 0.2),  # of centre and size in the box encoding
            positive_threshold=0.5,  # IoU from which an anchor is positive
            negative_threshold=0.4,  # IoU under which it is background; between: ignored
        )
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        dict(
            kind="focal",  # or "softmax": cross-entropy with a background class and hard negatives
            focal_alpha=0.25,  # weight of positive logits; of negative ones: one minus that
            focal_alpha_per_class=(),  # one alpha a class, in the order of ids; (): focal_alpha
            focal_gamma=2.0,
            negative_ratio=3.0,  # "softmax": hardest negatives per positive anchor of an image
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
            clip_norm=1000.0,  # global gradient norm; 0: none. Eight TUMs multiply gradients: those
            #   of random weights are in the thousands, and 10 would all but stop the heads
            schedule="step",  # or "cosine", "constant"
            backbone_factor=1.0,  # times the learning rate, for the backbone's parameters
            warmup_epochs=5.0,  # linear, to the learning rate
            warmup_share=0.0,  # in place of warmup_epochs: the same as a share of the run, 0..1
            warmup_start=0.0,  # where it begins, not scaled; 0: one step's share of the rise
            decay_epochs=(90.0, 120.0),  # schedule "step"; epochs count from the run's start
            decay_shares=(),  # in place of decay_epochs: the same as shares of the run, 0..1
            decay_factors=(0.1, 0.1),  # schedule "step": what each of them multiplies it by
            final_factor=0.01,  # schedule "cosine": share of the learning rate at the end
            ema_decay=0.9998,  # moving average of weights and statistics, reached by a warm-up
            norm_warmup=False,  # model.norm_momentum is reached by the same warm-up
        )
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        dict(
            every_epochs=5.0,  # validation, with a checkpoint; always at the end as well
            batch_size=8,  # images per detection call, over all devices
            score_threshold=0.01,  # scores above it enter NMS
            nms="hard",  # or "soft_linear", "soft_gaussian": overlapping boxes lose score instead
            iou_threshold=0.5,  # "hard": IoU above which a box goes
            pre_nms_top_k=1000,  # "hard": (anchor, class) pairs of an image that enter
            soft_iou_threshold=0.3,  # "soft_linear": IoU above which a score is times 1 - IoU
            soft_sigma=0.5,  # "soft_gaussian": a score is times exp(-IoU^2 / sigma)
            soft_score_floor=0.001,  # soft: boxes whose score falls below it go
            soft_candidates=200,  # soft: boxes of a class that enter, the highest; crowds need more
            max_per_class=0,  # detections of a class per image; 0: no limit
            max_detections=100,  # per image
            class_agnostic=False,  # True: boxes of different classes suppress each other
            test_sizes=(),  # evaluate, predict: sides or (height, width) of several inputs, pixels,
            #   detections merged by the NMS; (): data.image_size. Not in validation of a training
            test_flip=False,  # evaluate, predict: merge with those of the mirrored images
            patience=0,  # stop after so many evaluations without a better AP; 0: never
        )
    )
