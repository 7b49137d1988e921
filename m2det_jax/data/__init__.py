"""Data sets and what is done to them before the network: numpy, Pillow and grain, no jax."""

from m2det_jax.data.augment.settings import (
    AugmentSettings,
    ResizeSettings,
    describe_augmentation,
)
from m2det_jax.data.errors import EFFECTS, KINDS, DataError, Finding, Findings
from m2det_jax.data.feeding.batches import TrainSettings, padded_objects, train_batches
from m2det_jax.data.feeding.evaluation import eval_batches
from m2det_jax.data.feeding.sampling import describe_sampling, epoch_length, image_factors
from m2det_jax.data.formats.class_file import read_classes, write_classes
from m2det_jax.data.formats.csv_boxes import write_csv
from m2det_jax.data.formats.own_module import make_index
from m2det_jax.data.formats.sources import Source, check_dataset, read_csv, read_dataset
from m2det_jax.data.images import UnreadableImage, load_image, read_size
from m2det_jax.data.index import DetectionIndex, split_by_image

__all__ = [
    "AugmentSettings",
    "DataError",
    "DetectionIndex",
    "EFFECTS",
    "Finding",
    "Findings",
    "KINDS",
    "ResizeSettings",
    "Source",
    "TrainSettings",
    "UnreadableImage",
    "check_dataset",
    "describe_augmentation",
    "describe_sampling",
    "epoch_length",
    "eval_batches",
    "image_factors",
    "load_image",
    "make_index",
    "padded_objects",
    "read_classes",
    "read_csv",
    "read_dataset",
    "read_size",
    "split_by_image",
    "train_batches",
    "write_classes",
    "write_csv",
]
