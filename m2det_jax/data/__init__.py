"""Data sets and what is done to them before the network: numpy, Pillow and grain, no jax."""

from m2det_jax.data.csv_source import read_classes, read_csv, write_classes, write_csv
from m2det_jax.data.describe import describe_augmentation, describe_sampling
from m2det_jax.data.errors import EFFECTS, KINDS, DataError, Finding, Findings
from m2det_jax.data.images import UnreadableImage, load_image, read_size
from m2det_jax.data.index import DetectionIndex, split_by_image
from m2det_jax.data.own_source import make_index
from m2det_jax.data.pipeline import eval_batches, padded_objects, train_batches
from m2det_jax.data.sampling import epoch_length, image_factors
from m2det_jax.data.settings import AugmentSettings, ResizeSettings
from m2det_jax.data.sources import Source, inspect_dataset, read_dataset

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
