"""Data sets and what is done to them before the network: numpy, Pillow and grain, no jax."""

from m2det_jax.data.augment.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.errors import EFFECTS, KINDS, DataError, Finding, Findings
from m2det_jax.data.feeding.describe import describe_augmentation, describe_sampling
from m2det_jax.data.feeding.pipeline import eval_batches, padded_objects, train_batches
from m2det_jax.data.feeding.sampling import epoch_length, image_factors
from m2det_jax.data.formats.sources import Source, inspect_dataset, read_dataset
from m2det_jax.data.images import UnreadableImage, load_image, read_size
from m2det_jax.data.index import DetectionIndex, split_by_image
from m2det_jax.data.reading.csv_source import read_classes, read_csv, write_classes, write_csv
from m2det_jax.data.reading.own_source import make_index

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
    "UnreadableImage",
    "describe_augmentation",
    "describe_sampling",
    "epoch_length",
    "eval_batches",
    "image_factors",
    "inspect_dataset",
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
